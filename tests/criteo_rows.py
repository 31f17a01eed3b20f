"""Files in the Criteo format for tests, and what they hold."""

import math
from pathlib import Path

import numpy as np

from fiited_jax.data import Batch, CriteoStream
from stream_checks import assert_same, joined

Row = list[str]


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Return rows with missing values, negative integers and 1 to 8 hex digits."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        dense = [
            "" if missing else str(value)
            for missing, value in zip(
                generator.random(13) < 0.2,
                generator.integers(-3, 100, 13) ** 3,
                strict=True,
            )
        ]
        tables = [
            "" if missing else f"{value:x}"
            for missing, value in zip(
                generator.random(26) < 0.2,
                generator.integers(0, 1 << 32, 26) >> generator.integers(0, 30, 26),
                strict=True,
            )
        ]
        rows.append([str(generator.integers(2)), *dense, *tables])
    return rows


def encode(rows: list[Row], end: str = "\n") -> bytes:
    return "".join("\t".join(row) + end for row in rows).encode()


def write(path: Path, content: bytes | list[Row]) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else encode(content))
    return path


def expected(rows: list[Row]) -> Batch:
    """Parse rows without polars and numpy arithmetic."""
    dense = [
        [math.log(1 + max(int(field), 0)) if field else 0.0 for field in row[1:14]]
        for row in rows
    ]
    ids = [[int(field, 16) if field else 1 << 32 for field in row[14:]] for row in rows]
    labels = np.array([int(row[0]) for row in rows], np.float32)
    return Batch(labels, np.array(dense, np.float32), np.array(ids, np.int64))


def read_all(path: Path, block_bytes: int):
    stream = CriteoStream(path, block_bytes=block_bytes)
    for split in ("train", "test"):
        list(stream.batches(split, 8))


def assert_holds(stream: CriteoStream, rows: list[Row], num_train: int):
    assert (stream.num_train, stream.num_test) == (num_train, len(rows) - num_train)
    for split, part in (("train", rows[:num_train]), ("test", rows[num_train:])):
        found, wanted = joined(stream, split), expected(part)
        assert found.labels.dtype == found.dense.dtype == np.float32
        assert_same(Batch(found.labels, wanted.dense, found.ids), wanted)
        np.testing.assert_allclose(found.dense, wanted.dense, rtol=3e-7)
