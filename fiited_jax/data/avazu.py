"""The Avazu Kaggle click-through file as a click stream."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from .file_stream import FileStream
from .lines import (
    BINARY,
    HEXADECIMAL,
    Column,
    LineFormat,
    cut_rows,
    hexadecimal,
    is_binary,
)
from .stream import MISSING_CATEGORY, Batch, DataError, check_count

__all__ = ["AvazuStream"]

_HEXADECIMAL = [
    *("site_id", "site_domain", "site_category"),
    *("app_id", "app_domain", "app_category"),
    *("device_id", "device_ip", "device_model"),
]
_INTEGERS = [
    *("C1", "banner_pos", "device_type", "device_conn_type"),
    *(f"C{number}" for number in range(14, 22)),
]
_TABLES = [*_INTEGERS[:2], *_HEXADECIMAL, *_INTEGERS[2:]]  # in the file's order
_INTEGER = Column(
    re.compile(rb"(-?0*[0-9]{1,9})?"), "an integer of 1 to 9 digits or empty", pl.Int64
)
_FORMAT = LineFormat(
    "the Avazu format",
    b",",
    "separated by commas",
    {
        "id": Column(re.compile(rb".*"), "anything"),
        "click": BINARY,
        "hour": Column(re.compile(rb"[0-9]{8}"), "YYMMDDHH"),
    }
    | {name: HEXADECIMAL if name in _HEXADECIMAL else _INTEGER for name in _TABLES},
)
_HEADER = ",".join(_FORMAT.columns)
_MAX_INTEGER = 10**9 - 1
_LOW_WORD = (1 << 32) - 1
_FIRST_LINE = 2  # of the rows: the header is line 1
_MONDAY_OF_THE_EPOCH = 3  # 1970-01-01 was a Thursday: three days after a Monday

_SORTED_BLOCK = 1 << 14


class AvazuStream(FileStream):
    """A file in the format of the Avazu Kaggle training set, in order of `hour`.

    The file is comma separated with a header of 24 columns: id, click (0 or 1), hour
    (YYMMDDHH), C1, banner_pos, the nine of site, app and device (1 to 8 hexadecimal
    digits or empty), device_type, device_conn_type and C14..C21 (integers of 1 to 9
    digits or empty). It may be gzip compressed.

    Rows of the same hour keep the order of the file. A file that is sorted by hour, as
    the one from Kaggle is, is read in blocks, so memory does not grow with it. One that
    is not is read whole on first use and kept in memory, about 200 bytes per row;
    `(head -n1 FILE; tail -n+2 FILE | sort -s -t, -k3,3) > SORTED` sorts it on disk.

    The 23 tables are hour of day (0..23), day of week (0 is Monday) and the 21 columns
    after `hour` in the order of the file. The hour itself is none: every hour of the
    test split would be new. Hexadecimal digits become their value as an id and an
    integer x becomes x modulo 2**32, so both are without collisions; an empty field
    becomes `MISSING_CATEGORY`. Avazu has no dense features; the single one here is a
    constant 1, from which a model can learn a bias.

    The test split is the last `round(num_days * test_fraction)` of the days that have
    rows: of the ten days from Kaggle the last two, by default. A file of so few days
    that one of the splits would have less than a day is cut by rows instead, the test
    split being the last `round(num_rows * test_fraction)`.

    Opening the stream reads and checks the whole file once, and the first
    `vocabulary()` reads the train split once more. What they find is kept in
    `cache_dir` and found again while the file stays the same. A cache that cannot
    be read or written is ignored.

    Args:
      path: The file.
      test_fraction: Share of days in the test split, above 0 and below 1.
      cache_dir: Folder of the cache; by default the environment variable
        `FIITED_CACHE_DIR` or else `~/.cache/fiited_jax`.
      block_bytes: Bytes read at a time, after decompression.

    Raises:
      DataError: The file cannot be read, is not in the format, or has too few rows
        for both splits.
      ValueError: `test_fraction` or `block_bytes` is out of range.
    """

    name = "avazu"
    num_dense = 1
    num_tables = 2 + len(_TABLES)

    def __init__(
        self,
        path: str | os.PathLike[str],
        test_fraction: float = 0.2,
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        block_bytes: int = 1 << 22,
    ):
        check_count("block_bytes", block_bytes)
        super().__init__(path, test_fraction, cache_dir)
        self._block_bytes = block_bytes
        num_rows, in_order, num_test = self._cache.counts(3, self._count_rows)
        self._cut(num_rows, num_test)
        self._in_order = bool(in_order)
        self._kept: tuple[Batch, np.ndarray] | None = None

    def _examples(self, start: int, stop: int) -> Iterator[Batch]:
        if self._in_order:
            for _, batch in self._parsed(start, stop):
                yield batch
            return
        if self._kept is None:
            self._kept = self._read_whole()
        batch, order = self._kept
        for first in range(start, stop, _SORTED_BLOCK):
            rows = order[first : min(first + _SORTED_BLOCK, stop)]
            yield Batch(*(array[rows] for array in batch))

    def _read_whole(self) -> tuple[Batch, np.ndarray]:
        """Return all rows in file order, and the order of hours int64[num_rows]."""
        num_rows = self.num_train + self.num_test
        hours = np.empty(num_rows, np.int64)
        whole = Batch(
            np.empty(num_rows, np.float32),
            np.empty((num_rows, self.num_dense), np.float32),
            np.empty((num_rows, self.num_tables), np.int64),
        )
        row = 0
        for block_hours, batch in self._parsed(0, num_rows):
            block = slice(row, row + len(block_hours))
            hours[block] = block_hours
            for array, part in zip(whole, batch, strict=True):
                array[block] = part
            row = block.stop
        return whole, np.argsort(hours, kind="stable")

    def _parsed(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Iterate over hours and examples of rows [start, stop) in file order."""
        row = start
        for lines in cut_rows(self._rows(), start, stop):
            hours, batch = _parse(lines, self.path, row + _FIRST_LINE)
            row += len(hours)
            yield hours, batch
        self._check_end(row, stop)

    def _rows(self) -> Iterator[bytes]:
        """Yield the file in pieces of whole lines, without its header."""
        first = True
        for block in _FORMAT.blocks(self.path, self._block_bytes):
            if first:
                header, _, block = block.partition(b"\n")
                _check_header(header, self.path)
                first = False
            if block:
                yield block

    def _count_rows(self) -> tuple[int, int, int]:
        """Return how many rows there are, if they are in order, how many are tests."""
        days: collections.Counter[int] = collections.Counter()
        last, in_order = 0, True
        for block in self._rows():
            hours, _ = _parse(block, self.path, days.total() + _FIRST_LINE)
            in_order &= last <= hours[0] and not np.any(hours[1:] < hours[:-1])
            last = hours[-1]
            found, counts = np.unique(hours // 100, return_counts=True)
            days.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        if not days:
            raise DataError(
                f"{self.path}: is empty, a header and at least 2 rows are needed"
            )
        return days.total(), int(in_order), _num_test(days, self._test_fraction)


def _num_test(days: Mapping[int, int], test_fraction: float) -> int:
    """Return the rows of the test split, by the number of rows of every day.

    >>> _num_test({141021: 10, 141023: 10, 141022: 30}, 0.4)
    10
    >>> _num_test({141021: 10, 141022: 30}, 0.4)  # less than a day
    16
    """
    num_test_days = len(days) * test_fraction
    if 1 <= num_test_days <= len(days) - 1:
        return sum(days[day] for day in sorted(days)[-round(num_test_days) :])
    return round(sum(days.values()) * test_fraction)


def _check_header(header: bytes, path: Path) -> None:
    text = header.decode(errors="backslashreplace")
    if text == _HEADER:
        return
    found = text.split(",")
    missing = ", ".join(name for name in _FORMAT.columns if name not in found)
    what = f"lacks {missing}" if missing else "has other columns or another order"
    raise DataError(
        f"{path}: line 1 is {text[:80]!r} and {what}, must be the header {_HEADER}"
    )


def _parse(lines: bytes, path: Path, first_line: int) -> tuple[np.ndarray, Batch]:
    """Parse whole lines into hours int64[B] and examples.

    `first_line` is for error messages only.
    """
    integers = pl.col(_INTEGERS)
    values, values_usable = hexadecimal(_HEXADECIMAL)
    usable = [
        is_binary("click"),
        pl.col("hour").str.contains("^[0-9]{8}$").fill_null(False).all(),
        integers.is_between(-_MAX_INTEGER, _MAX_INTEGER).all(),
        values_usable,
    ]
    frame = _FORMAT.parse(lines, path, first_line, usable)
    hours = frame["hour"].cast(pl.Int64).to_numpy()
    ids = np.empty((len(hours), 2 + len(_TABLES)), np.int64)
    ids[:, :2] = _clock(hours, path, first_line)
    ids[:, 2:] = (
        frame.with_columns(values, integers & _LOW_WORD)
        .select(pl.col(_TABLES).fill_null(MISSING_CATEGORY))
        .to_numpy()
    )
    labels = frame["click"].cast(pl.Float32).to_numpy(writable=True)
    return hours, Batch(labels, np.ones((len(hours), 1), np.float32), ids)


def _clock(hours: np.ndarray, path: Path, first_line: int) -> np.ndarray:
    """Return hour of day and day of week, int64[B, 2], of hours YYMMDDHH int64[B]."""
    dates, hour = np.divmod(hours, 100)
    months, day = np.divmod(dates, 100)
    year, month = np.divmod(months, 100)
    calendar = ((30 + year) * 12 + month - 1).astype("datetime64[M]")  # from 1970 on
    date = calendar.astype("datetime64[D]") + (day - 1)
    wrong = (hour > 23) | (month < 1) | (month > 12)
    wrong |= date.astype("datetime64[M]") != calendar  # a 31st of April, a day 0
    if np.any(wrong):
        row = int(np.argmax(wrong))
        raise DataError(
            f"{path}: line {first_line + row}, column hour is '{hours[row]:08d}', "
            "must be a date and an hour 00 to 23, YYMMDDHH"
        )
    weekday = (date.astype(np.int64) + _MONDAY_OF_THE_EPOCH) % 7
    return np.stack([hour, weekday], axis=1)
