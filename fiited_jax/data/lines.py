"""Lines of text files, plain or gzip, in blocks, and what their columns may hold."""

from __future__ import annotations

import dataclasses
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .stream import DataError

__all__ = ["LineFormat", "cut_rows", "unreadable"]

_GZIP_MAGIC = b"\x1f\x8b"
_MAX_LINE_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class LineFormat:
    """Lines of a fixed number of columns.

    Attributes:
      separator: What stands between columns.
      separated: The same in words, such as `"separated by tabs"`.
      columns: By name the pattern of a whole field, and in words what it allows.
    """

    separator: bytes
    separated: str
    columns: Mapping[str, tuple[re.Pattern[bytes], str]]

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
            with _open(path) as file:
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

    def has_width(self, lines: bytes) -> bool:
        """Return whether all lines have the right number of columns.

        Args:
          lines: Whole lines, at least one; the separator must be a single byte.
        """
        data = np.frombuffer(lines, np.uint8)
        starts = np.append(0, np.flatnonzero(data[:-1] == ord("\n")) + 1)
        found = np.add.reduceat(data == ord(self.separator), starts, dtype=np.int32)
        return bool(np.all(found == len(self.columns) - 1))

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
            for (name, (pattern, allowed)), field in zip(
                self.columns.items(), fields, strict=True
            ):
                if not pattern.fullmatch(field):
                    raise DataError(
                        f"{path}: line {number}, column {name} is "
                        f"{repr(field[:40])[1:]}, must be {allowed}"
                    )


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


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error that says that a file cannot be read."""
    return DataError(
        f"{path}: cannot be read ({error}); a readable text file, plain or whole gzip, "
        "is needed"
    )


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    with path.open("rb") as file:
        compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    return gzip.GzipFile(path) if compressed else path.open("rb")
