"""Files in the Avazu format for tests, and what they hold."""

import datetime

import numpy as np

from fiited_jax.data import Batch
from stream_checks import assert_same, joined

HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,"
    "app_category,device_id,device_ip,device_model,device_type,device_conn_type,"
    "C14,C15,C16,C17,C18,C19,C20,C21"
)
COLUMNS = HEADER.split(",")
HEXADECIMAL = range(5, 14)


def make_rows(count, seed=0):
    """Return rows in random order of hour, with missing and negative values."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        row = [str(number), str(generator.integers(2)), ""]
        row[2] = f"1410{generator.integers(21, 31)}{generator.integers(24):02d}"
        for column in range(3, 24):
            if generator.random() < 0.1:
                row.append("")
            elif column in HEXADECIMAL:
                row.append(f"{generator.integers(1 << 32):08x}")
            else:
                row.append(str(generator.integers(-1, 50)))
        rows.append(row)
    return rows


def in_order(rows):
    return sorted(rows, key=lambda row: row[2])  # stable


def encode(rows, end="\n"):
    return "".join(",".join(row) + end for row in [COLUMNS, *rows]).encode()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else encode(content))
    return path


def expected(rows):
    """Parse rows without polars and numpy arithmetic."""
    ids = []
    for row in rows:
        time = datetime.datetime.strptime(row[2], "%y%m%d%H")
        example = [time.hour, time.weekday()]
        for column in range(3, 24):
            field, base = row[column], 16 if column in HEXADECIMAL else 10
            example.append(int(field, base) % 2**32 if field else 2**32)
        ids.append(example)
    return Batch(
        np.array([int(row[1]) for row in rows], np.float32),
        np.ones((len(rows), 1), np.float32),
        np.array(ids, np.int64),
    )


def cut(rows, fraction=0.2):
    """Cut rows in order of hour into the two splits."""
    days = sorted({row[2][:6] for row in rows})
    if 1 <= fraction * len(days) <= len(days) - 1:
        first = days[-round(fraction * len(days))]
        num_train = sum(row[2][:6] < first for row in rows)
    else:
        num_train = len(rows) - round(fraction * len(rows))
    return rows[:num_train], rows[num_train:]


def assert_holds(stream, rows, fraction=0.2):
    train, test = cut(rows, fraction)
    assert (stream.num_train, stream.num_test) == (len(train), len(test))
    assert_same(joined(stream, "train"), expected(train))
    assert_same(joined(stream, "test"), expected(test))
