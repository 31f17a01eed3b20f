"""Tables for tests, and what they hold."""

import csv
import gzip
import io
import math

import numpy as np
import polars as pl

from fiited_jax.data import Batch, TableStream, text_id
from stream_checks import assert_same, whole

SCHEMA = """
label = "clicked"
dense = ["price", "age"]
ids = ["user", "item"]
"""


def make_rows(count=50, seed=0):
    """Return rows with missing values, quotes, commas, large and negative ids."""
    generator = np.random.default_rng(seed)
    items = [
        "a",
        "7",
        "07",
        "-3",
        "9" * 19,
        "x, \u00e4",
        'say "no"',
        "two\nlines",
        None,
    ]
    return [
        {
            "unused": f'"{number},"',
            "user": number % 7 if number % 5 else None,
            "price": float(generator.normal() * 1000) if number % 6 else None,
            "clicked": int(generator.integers(2)),
            "item": items[generator.integers(len(items))],
            "age": int(generator.integers(-5, 90)),
            "hour": int(generator.integers(20)),
        }
        for number in range(count)
    ]


def as_csv(rows, end="\n"):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows):
    content = io.BytesIO()
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(content)
    return content.getvalue()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def open_table(folder, content, schema=SCHEMA, *args, **fields):
    path = write(folder / "table", content)
    return TableStream(path, write(folder / "schema.toml", schema), *args, **fields)


def expected_id(value):
    if value is None:
        return -1
    text = str(value)
    if text.isdecimal() and str(int(text)) == text and int(text) < 2**63:
        return int(text)
    return text_id(text)


def expected(rows):
    """Make the examples without polars and numpy arithmetic."""
    dense = [
        [
            math.copysign(math.log1p(abs(row[name] or 0)), row[name] or 0)
            for name in ("price", "age")
        ]
        for row in rows
    ]
    ids = [[expected_id(row[name]) for name in ("user", "item")] for row in rows]
    labels = [row["clicked"] for row in rows]
    return Batch(
        np.array(labels, np.float32),
        np.array(dense, np.float32),
        np.array(ids, np.int64),
    )


def assert_holds(stream, rows):
    found, wanted = whole(stream), expected(rows)
    assert found.dense.dtype == np.float32
    assert_same(Batch(found.labels, wanted.dense, found.ids), wanted)
    np.testing.assert_allclose(found.dense, wanted.dense, rtol=3e-7)


ENCODERS = {
    "csv": as_csv,
    "windows": lambda rows: as_csv(rows, "\r\n"),
    "no last end": lambda rows: as_csv(rows)[:-1],
    "mark": lambda rows: b"\xef\xbb\xbf" + as_csv(rows),
    "csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "parquet": as_parquet,
}
