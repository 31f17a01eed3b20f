"""Lines of text files, plain or gzip, in blocks, and what their columns may hold."""

from __future__ import annotations

import dataclasses
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import polars as pl

from .stream import DataError

__all__ = [
    "BINARY",
    "HEXADECIMAL",
    "Column",
    "LineFormat",
    "cut_rows",
    "hexadecimal",
    "is_binary",
    "open_text",
    "unreadable",
]

_GZIP_MAGIC = b"\x1f\x8b"
_MAX_LINE_BYTES = 1 << 16
_MAX_HEXADECIMAL_DIGITS = 8
_UNIT_SEPARATOR = b"\x1f"


class Column(NamedTuple):
    """What a column may hold.

    Attributes:
      pattern: Of a whole field.
      allowed: The same in words.
      dtype: The polars type that `LineFormat.parse` reads it as.
    """

    pattern: re.Pattern[bytes]
    allowed: str
    dtype: type[pl.DataType] = pl.String


BINARY = Column(re.compile(rb"[01]"), "0 or 1")
HEXADECIMAL = Column(
    re.compile(rb"([0-9a-fA-F]{1,%d})?" % _MAX_HEXADECIMAL_DIGITS),
    f"1 to {_MAX_HEXADECIMAL_DIGITS} hexadecimal digits or empty",
)


@dataclasses.dataclass(frozen=True)
class LineFormat:
    """Lines of a fixed number of columns.

    Attributes:
      name: For messages, such as `"the Criteo format"`.
      separator: What stands between columns.
      separated: The same in words, such as `"separated by tabs"`.
      columns: By name what they may hold.
      suspicious: Bytes of fields that polars takes and the patterns may not.
    """

    name: str
    separator: bytes
    separated: str
    columns: Mapping[str, Column]
    suspicious: bytes = b"+ \r"

    def blocks(self, path: Path, block_bytes: int) -> Iterator[bytes]:
        """Yield a file in pieces of whole lines, each ending in a newline.

        Carriage returns before a newline are dropped.

        Args:
          path: The file, plain or gzip whatever its name.
          block_bytes: Bytes read at a time, after decompression.

        Raises:
          DataError: The file cannot be read or has a line of a size that no line of
            this format has.
        """
        rest = b""
        try:
            with open_text(path) as file:
                while block := file.read(block_bytes):
                    block = rest + block
                    end = block.rfind(b"\n") + 1
                    rest = block[end:]
                    if len(rest) > _MAX_LINE_BYTES:
                        raise DataError(
                            f"{path}: a line longer than {_MAX_LINE_BYTES} bytes; "
                            f"allowed are lines of {len(self.columns)} columns "
                            f"{self.separated}"
                        )
                    if end:
                        yield block[:end].replace(b"\r\n", b"\n")
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(path, error) from error
        if rest:
            yield rest.removesuffix(b"\r") + b"\n"

    def parse(
        self, lines: bytes, path: Path, first_line: int, usable: Sequence[pl.Expr]
    ) -> pl.DataFrame:
        """Parse lines; an empty field is null.

        Args:
          lines: Whole lines, at least one.
          path: Their file, for messages.
          first_line: The number of the first of them, for messages.
          usable: Single booleans: whether what polars has parsed is allowed.

        Raises:
          DataError: Names the first line that breaks the format.
        """
        plain, separator, suspicious = lines, self.separator, self.suspicious
        if len(separator) > 1:  # than polars can
            plain = lines.replace(separator, _UNIT_SEPARATOR)
            separator = _UNIT_SEPARATOR
            suspicious += separator
        # polars fills short lines with nulls.
        if not _has_width(plain, separator, len(self.columns)) or any(
            byte in lines for byte in suspicious
        ):
            self.check(lines, path, first_line)
        try:
            frame = pl.read_csv(
                plain,
                has_header=False,
                separator=separator.decode(),
                quote_char=None,
                schema={name: column.dtype for name, column in self.columns.items()},
            )
            if not all(frame.select(*usable).row(0)):
                raise pl.exceptions.ComputeError("a value is not in range")
        except pl.exceptions.PolarsError as error:
            self.check(lines, path, first_line)
            raise DataError(
                f"{path}: in or after line {first_line}: {error}; {self.name} is needed"
            ) from error
        return frame

    def check(self, lines: bytes, path: Path, first_line: int) -> None:
        """Look at every field; slow, to find out what is wrong.

        Args:
          lines: Whole lines.
          path: Their file, for the message.
          first_line: The number of the first of them, for the message.

        Raises:
          DataError: Names the first line that breaks the format, if any does.
        """
        for number, line in enumerate(lines.split(b"\n")[:-1], first_line):
            fields = line.split(self.separator)
            if len(fields) != len(self.columns):
                raise DataError(
                    f"{path}: line {number} has {len(fields)} columns, "
                    f"must have {len(self.columns)} {self.separated}"
                )
            for (name, column), field in zip(self.columns.items(), fields, strict=True):
                if not column.pattern.fullmatch(field):
                    raise DataError(
                        f"{path}: line {number}, column {name} is "
                        f"{repr(field[:40])[1:]}, must be {column.allowed}"
                    )


def is_binary(name: str) -> pl.Expr:
    """Return whether a column parsed from `BINARY` is as it must be."""
    return pl.col(name).is_in(["0", "1"]).fill_null(False).all()


def hexadecimal(names: Sequence[str]) -> tuple[pl.Expr, pl.Expr]:
    """Return the values of `HEXADECIMAL` columns, and if they are as they must be.

    The values are int64, null where a field is empty.
    """
    text = pl.col(names)
    values = text.str.to_integer(base=16, strict=False)
    usable = (text.is_null() == values.is_null()) & (values.fill_null(0) >= 0)
    usable &= text.str.len_bytes().fill_null(0) <= _MAX_HEXADECIMAL_DIGITS
    return values, usable.all()


def cut_rows(blocks: Iterable[bytes], start: int, stop: int) -> Iterator[bytes]:
    r"""Yield lines [start, stop) of blocks in pieces of whole lines, in order.

    >>> list(cut_rows([b"a\nb\n", b"c\nd\n"], 1, 3))
    [b'b\n', b'c\n']
    """
    first = 0
    for block in blocks:
        last = first + block.count(b"\n")
        if last > start:
            newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            ends = np.append(0, newlines + 1)
            yield block[ends[max(start - first, 0)] : ends[min(stop, last) - first]]
        first = last
        if first >= stop:
            return


def open_text(path: Path) -> BinaryIO | gzip.GzipFile:
    """Open a file, plain or gzip whatever its name."""
    with path.open("rb") as file:
        compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    return gzip.GzipFile(path) if compressed else path.open("rb")


def unreadable(
    path: Path,
    error: BaseException,
    needed: str = "a readable text file, plain or whole gzip,",
) -> DataError:
    """Return the error that says that a file cannot be read."""
    text = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"{path}: cannot be read ({text}); {needed} is needed")


def _has_width(lines: bytes, separator: bytes, num_columns: int) -> bool:
    """Return whether all lines, at least one, have this many columns."""
    data = np.frombuffer(lines, np.uint8)
    starts = np.append(0, np.flatnonzero(data[:-1] == ord("\n")) + 1)
    found = np.add.reduceat(data == ord(separator), starts, dtype=np.int32)
    return bool(np.all(found == num_columns - 1))
