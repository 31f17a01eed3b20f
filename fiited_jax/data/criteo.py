"""The Criteo Kaggle display advertising file as a click stream."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
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

__all__ = ["CriteoStream"]

_NUM_DENSE = 13
_NUM_TABLES = 26
_DENSE = [f"I{number}" for number in range(1, _NUM_DENSE + 1)]
_TABLES = [f"C{number}" for number in range(1, _NUM_TABLES + 1)]
_DIGITS = Column(
    re.compile(rb"([+-]?0*[0-9]{1,18})?"),
    "an integer of 1 to 18 digits or empty",
    pl.Int64,
)
_FORMAT = LineFormat(
    "the Criteo format",
    b"\t",
    "separated by tabs",
    {"label": BINARY}
    | dict.fromkeys(_DENSE, _DIGITS)
    | dict.fromkeys(_TABLES, HEXADECIMAL),
)
_MAX_INTEGER = 10**18 - 1


class CriteoStream(FileStream):
    """A file in the format of the Criteo Kaggle training set, in file order.

    The file is tab separated without a header, 40 columns: the label (0 or 1), I1..I13
    (integers or empty) and C1..C26 (1 to 8 hexadecimal digits or empty). It may be
    gzip compressed and is read in blocks, so memory does not grow with it.

    An integer x becomes log(1 + max(x, 0)) in float32, an empty one 0. A category
    becomes its hash as an id, an empty one `MISSING_CATEGORY`. The test split is the
    last `round(num_rows * test_fraction)` rows.

    Opening the stream reads the whole file once to count its rows, and the first
    `vocabulary()` reads the train split once more. Both results are kept in
    `cache_dir` and found again while the file stays the same. A cache that cannot
    be read or written is ignored.

    Args:
      path: The file.
      test_fraction: Share of rows in the test split, above 0 and below 1.
      cache_dir: Folder of the cache; by default the environment variable
        `FIITED_CACHE_DIR` or else `~/.cache/fiited_jax`.
      block_bytes: Bytes read at a time, after decompression.

    Raises:
      DataError: The file cannot be read, is not in the format, or has too few rows
        for both splits.
      ValueError: `test_fraction` or `block_bytes` is out of range.
    """

    name = "criteo"
    num_dense = _NUM_DENSE
    num_tables = _NUM_TABLES

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
        (num_rows,) = self._cache.counts(1, self._count_rows)
        self._cut(num_rows)

    def _examples(self, start: int, stop: int) -> Iterator[Batch]:
        row = start
        blocks = _FORMAT.blocks(self.path, self._block_bytes)
        for lines in cut_rows(blocks, start, stop):
            batch = _parse(lines, self.path, row)
            row += len(batch.labels)
            yield batch
        self._check_end(row, stop)

    def _count_rows(self) -> list[int]:
        num_rows = 0
        for block in _FORMAT.blocks(self.path, self._block_bytes):
            if num_rows == 0:
                # A file of another kind is told from its first rows, not after hours.
                _parse(block, self.path, 0)
            num_rows += block.count(b"\n")
        if num_rows == 0:
            raise DataError(f"{self.path}: is empty, at least 2 rows are needed")
        return [num_rows]


def _parse(lines: bytes, path: Path, first_row: int) -> Batch:
    """Parse whole lines; `first_row` (from 0) is for error messages only."""
    integers = pl.col(_DENSE)
    ids, ids_usable = hexadecimal(_TABLES)
    usable = [
        is_binary("label"),
        integers.is_between(-_MAX_INTEGER, _MAX_INTEGER).all(),
        ids_usable,
    ]
    frame = _FORMAT.parse(lines, path, first_row + 1, usable)
    dense = frame.select(integers.fill_null(0)).to_numpy(order="c")
    return Batch(
        frame["label"].cast(pl.Float32).to_numpy(writable=True),
        np.log1p(np.maximum(dense, 0).astype(np.float32)),
        frame.select(ids.fill_null(MISSING_CATEGORY)).to_numpy(order="c"),
    )
