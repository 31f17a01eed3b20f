"""Files of tables: csv, plain or gzip, and parquet."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl

from .lines import open_text, unreadable
from .stream import DataError

__all__ = ["read_table"]

_PARQUET_MAGIC = b"PAR1"
_BLOCK_BYTES = 1 << 22
_SHOWN_COLUMNS = 30

# A panic in polars is no `Exception`; it means a damaged file.
_POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def read_table(path: Path, columns: Sequence[str], schema: Path) -> pl.DataFrame:
    """Read columns of a csv or parquet file; its first bytes tell which it is.

    Args:
      path: The file.
      columns: Names of the columns to read.
      schema: Who names them, for messages.

    Returns:
      The columns, those of csv as text; empty text is null.

    Raises:
      DataError: The file cannot be read, has no rows, lacks a column or has it twice,
        or has rows of another width than its header.
    """
    try:
        with path.open("rb") as file:
            is_parquet = file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
    except OSError as error:
        raise unreadable(path, error) from error
    read = _read_parquet if is_parquet else _read_csv
    table = read(path, columns, schema)
    if table.height == 0:
        raise DataError(f"{path}: is empty, at least 2 rows are needed")
    text = pl.col(pl.String)
    return table.with_columns(pl.when(text != "").then(text))


def _read_parquet(path: Path, columns: Sequence[str], schema: Path) -> pl.DataFrame:
    try:
        _check_names(list(pl.read_parquet_schema(path)), columns, path, schema)
        return pl.read_parquet(path, columns=list(columns))
    except (*_POLARS_ERRORS, OSError) as error:
        raise unreadable(path, error, "a whole parquet file") from error


def _read_csv(path: Path, columns: Sequence[str], schema: Path) -> pl.DataFrame:
    """Read columns as text."""
    try:
        with open_text(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    try:
        text = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")
        header = next(csv.reader(text), None)
        if header is None:
            raise DataError(f"{path}: is empty, a header and 2 rows are needed")
        _check_names(header, columns, path, schema)
        _check_width(content, len(header), path)
        return pl.read_csv(content, infer_schema=False, columns=list(columns))
    except (*_POLARS_ERRORS, csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: is no table ({_first_line(error)}); comma separated values in "
            "UTF-8 with a header, plain or gzip, or parquet are needed"
        ) from error


def _check_names(
    found: Sequence[str], needed: Sequence[str], path: Path, schema: Path
) -> None:
    for name in needed:
        if found.count(name) > 1:
            raise DataError(f"{path}: has column {name!r} twice, must have it once")
        if name not in found:
            shown = ", ".join(map(repr, found[:_SHOWN_COLUMNS]))
            more = ", ..." if len(found) > _SHOWN_COLUMNS else ""
            raise DataError(
                f"{path}: has no column {name!r}, which {schema} names; must be one of "
                f"{shown}{more}"
            )


def _check_width(content: bytes, num_columns: int, path: Path) -> None:
    """Raise a `DataError` unless all rows are of one width: polars fills short ones."""
    per_row = num_columns - 1
    num_quotes, num_commas, num_rows = 0, 0, 0
    for start in range(0, len(content), _BLOCK_BYTES):
        data = np.frombuffer(content[start : start + _BLOCK_BYTES], np.uint8)
        quotes = num_quotes + np.cumsum(data == ord('"'))
        plain = quotes % 2 == 0
        commas = num_commas + np.cumsum((data == ord(",")) & plain)
        at_ends = commas[(data == ord("\n")) & plain]
        wanted = per_row * np.arange(num_rows + 1, num_rows + 1 + len(at_ends))
        wrong = at_ends != wanted
        if np.any(wrong):
            first = int(np.argmax(wrong))
            spare = at_ends[first] - wanted[first]
            _refuse_width(path, num_rows + first, spare, per_row)
        num_quotes, num_commas = quotes[-1], commas[-1]
        num_rows += len(at_ends)
    if num_quotes % 2:
        raise DataError(
            f"{path}: has a quote that does not end; every field must have both or none"
        )
    spare = num_commas - per_row * (num_rows + 1)
    if not content.endswith(b"\n") and spare:
        _refuse_width(path, num_rows, spare, per_row)


def _refuse_width(path: Path, row: int, spare: int, per_row: int) -> NoReturn:
    raise DataError(
        f"{path}: row {row} has {per_row + 1 + spare} columns, must have {per_row + 1} "
        "separated by commas, like the header"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
