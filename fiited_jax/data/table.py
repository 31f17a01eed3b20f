"""Any table of csv or parquet as a click stream, by a schema of its columns."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl

from .file_stream import FileStream
from .stream import PADDING, Batch, DataError
from .table_file import read_table
from .table_schema import TableSchema

__all__ = ["TableStream", "text_id"]

_BLOCK = 1 << 14


class TableStream(FileStream):
    """A csv or parquet file, its columns named by a schema.

    A csv file is in UTF-8, comma separated, with a header; it may be gzip compressed.
    The first bytes of the file tell if it is csv or parquet. The columns that the
    schema names are read into memory when the stream is opened; about 8 bytes per id
    and 4 per number stay there.

    The label is 0 or 1; with `label_min` it is any number, and 1 from there up. It is
    never missing; other values are missing where a field is empty, null or NaN.

    A number x becomes sign(x) * log(1 + |x|) in float32, a missing one 0. Without
    dense columns the single dense feature is a constant 1, from which a model can
    learn a bias.

    An id is an integer or text. An integer from 0 to 2**63 - 1 is itself, also where
    it is written as text; anything else becomes `text_id` of how it is written. A
    missing id is padding (-1).

    With `order_by` the rows are put in ascending order of that column, equal ones
    staying in the order of the file. Text is ordered by its characters, but as
    numbers where all of the column are numbers. The test split is the last
    `round(num_rows * test_fraction)` rows.

    The first `vocabulary()` is kept in `cache_dir` and found again while the file and
    its schema stay the same. A cache that cannot be read or written is ignored.

    Args:
      path: The file.
      schema: The TOML file of the schema, see `TableSchema.load`.
      test_fraction: Share of rows in the test split, above 0 and below 1.
      cache_dir: Folder of the cache; by default the environment variable
        `FIITED_CACHE_DIR` or else `~/.cache/fiited_jax`.

    Raises:
      DataError: A file cannot be read, lacks a column, has one of a type or a value
        that is not allowed, or has too few rows for both splits.
      ValueError: `test_fraction` is out of range.
    """

    name = "table"

    def __init__(
        self,
        path: str | os.PathLike[str],
        schema: str | os.PathLike[str],
        test_fraction: float = 0.2,
        cache_dir: str | os.PathLike[str] | None = None,
    ):
        columns = TableSchema.load(schema)
        files = [Path(path), Path(schema)]
        super().__init__(path, test_fraction, cache_dir, files=files)
        self.num_dense = max(len(columns.dense), 1)
        self.num_tables = len(columns.ids)
        table = read_table(self.path, columns.columns, Path(schema))
        self._cut(table.height)
        self._whole = _convert(table, columns, self.path)

    def _examples(self, start: int, stop: int) -> Iterator[Batch]:
        for first in range(start, stop, _BLOCK):
            rows = slice(first, min(first + _BLOCK, stop))
            yield Batch(*(array[rows].copy() for array in self._whole))


def text_id(text: str) -> int:
    """Return the id of a text: 63 bits of its BLAKE2b hash, the same everywhere.

    >>> text_id("user_7")
    5714019741610155659
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _convert(table: pl.DataFrame, schema: TableSchema, path: Path) -> Batch:
    """Return all examples in their order."""
    num_rows = table.height
    order = slice(None)
    if schema.order_by is not None:
        order = _order(table[schema.order_by], path)
    labels = _labels(table[schema.label], schema.label_min, path)[order]
    dense = np.ones((num_rows, max(len(schema.dense), 1)), np.float32)
    for place, name in enumerate(schema.dense):
        dense[:, place] = _numbers(table[name], path)[order]
    ids = np.empty((num_rows, len(schema.ids)), np.int64)
    for place, name in enumerate(schema.ids):
        ids[:, place] = _ids(table[name], path)[order]
    return Batch(labels, dense, ids)


def _labels(column: pl.Series, label_min: float | None, path: Path) -> np.ndarray:
    allowed = "0 or 1" if label_min is None else "a number"
    numbers = _as_floats(column, allowed, path)
    if label_min is None:
        usable, labels = numbers.is_in([0.0, 1.0]), numbers == 1
    else:
        usable, labels = numbers.is_not_nan(), numbers >= label_min
    _check_values(column, usable.fill_null(False), allowed, path)
    return labels.to_numpy().astype(np.float32)


def _numbers(column: pl.Series, path: Path) -> np.ndarray:
    allowed = "a finite number or missing"
    numbers = _as_floats(column, allowed, path)
    missing = column.is_null() | numbers.is_nan().fill_null(False)
    usable = missing | numbers.is_finite().fill_null(False)
    _check_values(column, usable, allowed, path)
    values = numbers.fill_nan(None).fill_null(0.0).to_numpy()
    return np.copysign(np.log1p(np.abs(values)), values).astype(np.float32)


def _ids(column: pl.Series, path: Path) -> np.ndarray:
    is_text = column.dtype in (pl.String, pl.Categorical, pl.Enum)
    if not is_text and not column.dtype.is_integer():
        _refuse_type(column, "integers or text", path)
    text = column.cast(pl.String)
    integers = (text if is_text else column).cast(pl.Int64, strict=False)
    # "7" is 7; "+7" and "07" are texts of their own, and so is what int64 cannot hold.
    plain = ((integers >= 0) & (integers.cast(pl.String) == text)).fill_null(False)
    hashed = text.is_not_null() & ~plain
    ids = integers.fill_null(PADDING).to_numpy().copy()
    if hashed.any():
        texts = text.filter(hashed)
        distinct = texts.unique()
        found = pl.Series(map(text_id, distinct), dtype=pl.Int64)
        ids[hashed.to_numpy()] = texts.replace_strict(distinct, found).to_numpy()
    return ids


def _order(column: pl.Series, path: Path) -> np.ndarray:
    """Return the stable order int64[N] of ascending values."""
    dtype = column.dtype
    if not (dtype == pl.String or dtype.is_numeric() or dtype.is_temporal()):
        _refuse_type(column, "numbers, times or text", path)
    present = column.is_not_null()
    if dtype.is_float():
        present &= column.is_not_nan().fill_null(False)
    _check_values(column, present, "a number, a time or text", path)
    if dtype == pl.String:
        floats = column.cast(pl.Float64, strict=False)
        if floats.is_not_nan().fill_null(False).all():
            integers = column.cast(pl.Int64, strict=False)
            column = floats if integers.null_count() else integers
    return np.argsort(column.rank("dense").to_numpy(), kind="stable")


def _as_floats(column: pl.Series, allowed: str, path: Path) -> pl.Series:
    """Return float64, null where there is no number."""
    dtype = column.dtype
    if not (dtype == pl.String or dtype == pl.Boolean or dtype.is_numeric()):
        _refuse_type(column, f"numbers, each {allowed}", path)
    return column.cast(pl.Float64, strict=False)


def _refuse_type(column: pl.Series, allowed: str, path: Path) -> NoReturn:
    raise DataError(
        f"{path}: column {column.name!r} is of type {column.dtype}, must be {allowed}"
    )


def _check_values(column: pl.Series, usable: pl.Series, allowed: str, path: Path):
    """Raise a `DataError` that names the first value that is not usable."""
    if usable.all():
        return
    row = int(np.argmin(usable.to_numpy()))
    value = "missing" if column[row] is None else repr(column[row])[:40]
    raise DataError(
        f"{path}: row {row + 1}, column {column.name!r} is {value}, must be {allowed}"
    )
