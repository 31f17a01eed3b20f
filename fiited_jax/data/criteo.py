"""The Criteo Kaggle display advertising file as a click stream."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import polars as pl

from .stream import (
    Batch,
    BayesReference,
    DataError,
    Split,
    check_count,
    rebatch,
    split_bounds,
)
from .vocabulary import Vocabulary, replace_file

__all__ = ["MISSING_CATEGORY", "CriteoStream"]

MISSING_CATEGORY = 1 << 32
"""Id of an empty category: outside the 32-bit hashes, so it is shared with none."""

_T = TypeVar("_T")

_NUM_DENSE = 13
_NUM_TABLES = 26
_DENSE = [f"I{number}" for number in range(1, _NUM_DENSE + 1)]
_TABLES = [f"C{number}" for number in range(1, _NUM_TABLES + 1)]
_COLUMNS = ["label", *_DENSE, *_TABLES]
_SCHEMA = pl.Schema(
    {name: pl.Int64 if name in _DENSE else pl.String for name in _COLUMNS}
)

# What a column may hold, by the first letter of its name.
_FORMAT = {
    "l": (re.compile(rb"[01]"), "0 or 1"),
    "I": (
        re.compile(rb"([+-]?0*[0-9]{1,18})?"),
        "an integer of 1 to 18 digits or empty",
    ),
    "C": (re.compile(rb"([0-9a-fA-F]{1,8})?"), "1 to 8 hexadecimal digits or empty"),
}
_MAX_INTEGER = 10**18 - 1
_MAX_HEXADECIMAL_DIGITS = 8

_GZIP_MAGIC = b"\x1f\x8b"
_CACHE_FORMAT = 1
_MAX_LINE_BYTES = 1 << 16


class CriteoStream:
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
        if not 0 < test_fraction < 1:
            raise ValueError(
                f"test_fraction is {test_fraction}, must be above 0 and below 1"
            )
        check_count("block_bytes", block_bytes)
        self.path = Path(path)
        self._block_bytes = block_bytes
        self._vocabulary: Vocabulary | None = None
        self._cache = _cache_stem(self.path, test_fraction, cache_dir)

        num_rows = self._cached(".rows", lambda file: int(file.read_bytes()))
        if num_rows is None or num_rows < 1:
            num_rows = self._count_rows()
            text = b"%d" % num_rows
            self._store(".rows", lambda to: replace_file(to, lambda f: f.write(text)))
        self.num_test = round(num_rows * test_fraction)
        self.num_train = num_rows - self.num_test
        if not self.num_train or not self.num_test:
            raise DataError(
                f"{self.path}: {num_rows} rows with test_fraction {test_fraction} make "
                f"{self.num_train} train and {self.num_test} test rows; "
                "each split needs at least 1"
            )

    def batches(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Iterate over a split in file order; see `ClickStream.batches`."""
        return rebatch(self._parsed(*split_bounds(self, split)), batch_size)

    def vocabulary(self) -> Vocabulary:
        """Return the distinct (table, id) pairs of the train split, computed once."""
        if self._vocabulary is None:
            self._vocabulary = self._cached(".npz", Vocabulary.load)
        if self._vocabulary is None:
            self._vocabulary = Vocabulary.from_batches(
                (batch.ids for batch in self._parsed(0, self.num_train)), _NUM_TABLES
            )
            self._store(".npz", self._vocabulary.save)
        return self._vocabulary

    def bayes(self) -> BayesReference | None:
        """Return None: the true click probabilities are unknown."""
        return None

    def _parsed(self, start: int, stop: int) -> Iterator[Batch]:
        row = start
        for lines in self._lines(start, stop):
            batch = _parse(lines, self.path, row)
            row += len(batch.labels)
            yield batch
        if row < stop:
            raise DataError(
                f"{self.path}: ends after {row} rows but had "
                f"{self.num_train + self.num_test} when it was opened; "
                "it must not change in use"
            )

    def _count_rows(self) -> int:
        num_rows = 0
        for block in _blocks(self.path, self._block_bytes):
            if num_rows == 0:
                # A file of another kind is told from its first rows, not after hours.
                _parse(block, self.path, 0)
            num_rows += block.count(b"\n")
        if num_rows == 0:
            raise DataError(f"{self.path}: is empty, at least 2 rows are needed")
        return num_rows

    def _lines(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield rows [start, stop) in pieces of whole lines, in order."""
        first = 0
        for block in _blocks(self.path, self._block_bytes):
            last = first + block.count(b"\n")
            if last > start:
                newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
                ends = np.append(0, newlines + 1)
                yield block[ends[max(start - first, 0)] : ends[min(stop, last) - first]]
            first = last
            if first >= stop:
                return

    def _cached(self, suffix: str, load: Callable[[Path], _T]) -> _T | None:
        try:
            return load(self._cache.with_suffix(suffix)) if self._cache else None
        except (OSError, ValueError):  # missing or damaged
            return None

    def _store(self, suffix: str, save: Callable[[Path], object]) -> None:
        if self._cache is None:
            return
        try:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            save(self._cache.with_suffix(suffix))
        except OSError:
            pass  # The cache only saves time.


def _cache_stem(
    path: Path, test_fraction: float, cache_dir: str | os.PathLike[str] | None
) -> Path | None:
    """Return the cache files' path without suffix, None where there is no home."""
    try:
        resolved = path.resolve()
        status = resolved.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise _unreadable(path, error) from error
    if not resolved.is_file():
        raise DataError(f"{path}: is not a regular file, a Criteo file is needed")
    key = (_CACHE_FORMAT, str(resolved), status.st_size, status.st_mtime_ns)
    digest = hashlib.sha256(repr((*key, float(test_fraction))).encode()).hexdigest()
    cache_dir = cache_dir or os.environ.get("FIITED_CACHE_DIR")
    if not cache_dir:
        try:
            cache_dir = Path.home() / ".cache" / "fiited_jax"
        except RuntimeError:
            return None
    return Path(cache_dir) / f"criteo-{digest[:32]}"


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    with path.open("rb") as file:
        compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    return gzip.GzipFile(path) if compressed else path.open("rb")


def _blocks(path: Path, block_bytes: int) -> Iterator[bytes]:
    """Yield the (decompressed) file in pieces of whole lines, each ending in a newline.

    Carriage returns before a newline are dropped.
    """
    rest = b""
    try:
        with _open(path) as file:
            while block := file.read(block_bytes):
                block = rest + block
                end = block.rfind(b"\n") + 1
                rest = block[end:]
                if len(rest) > _MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}: a line longer than {_MAX_LINE_BYTES} bytes; allowed "
                        f"are lines of {len(_COLUMNS)} tab separated columns"
                    )
                if end:
                    yield block[:end].replace(b"\r\n", b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if rest:
        yield rest.removesuffix(b"\r") + b"\n"


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: cannot be read ({error}); a readable text file, plain or whole gzip, "
        "is needed"
    )


def _parse(lines: bytes, path: Path, first_row: int) -> Batch:
    """Parse whole lines; `first_row` (from 0) is for error messages only."""
    data = np.frombuffer(lines, np.uint8)
    starts = np.flatnonzero(data[:-1] == ord("\n")) + 1
    tabs = np.add.reduceat(data == ord("\t"), np.append(0, starts), dtype=np.int32)
    # polars fills short lines with nulls and lets some of these bytes pass.
    if np.any(tabs != len(_COLUMNS) - 1) or any(byte in lines for byte in b"+ \r"):
        _check(lines, path, first_row)
    category = pl.col(_TABLES)
    ids = category.str.to_integer(base=16, strict=False)
    try:
        frame = pl.read_csv(
            lines, has_header=False, separator="\t", quote_char=None, schema=_SCHEMA
        )
        usable = frame.select(
            pl.col("label").is_in(["0", "1"]).fill_null(False).all(),
            pl.col(_DENSE).is_between(-_MAX_INTEGER, _MAX_INTEGER).all(),
            (
                (category.is_null() == ids.is_null())
                & (ids.fill_null(0) >= 0)
                & (category.str.len_bytes().fill_null(0) <= _MAX_HEXADECIMAL_DIGITS)
            ).all(),
        )
        if not all(usable.row(0)):
            raise pl.exceptions.ComputeError("a value is not in range")
    except pl.exceptions.PolarsError as error:
        _check(lines, path, first_row)
        raise DataError(
            f"{path}: after line {first_row}: {error}; the Criteo format is needed"
        ) from error
    dense = frame.select(_DENSE).fill_null(0).to_numpy(order="c")
    return Batch(
        frame["label"].cast(pl.Float32).to_numpy(writable=True),
        np.log1p(np.maximum(dense, 0).astype(np.float32)),
        frame.select(ids.fill_null(MISSING_CATEGORY)).to_numpy(order="c"),
    )


def _check(lines: bytes, path: Path, first_row: int) -> None:
    """Raise a `DataError` for the first line that breaks the format, if any does."""
    for number, line in enumerate(lines.split(b"\n")[:-1], first_row + 1):
        fields = line.split(b"\t")
        if len(fields) != len(_COLUMNS):
            raise DataError(
                f"{path}: line {number} has {len(fields)} columns, "
                f"must have {len(_COLUMNS)} separated by tabs"
            )
        for name, field in zip(_COLUMNS, fields, strict=True):
            pattern, allowed = _FORMAT[name[0]]
            if not pattern.fullmatch(field):
                raise DataError(
                    f"{path}: line {number}, column {name} is {repr(field[:40])[1:]}, "
                    f"must be {allowed}"
                )
