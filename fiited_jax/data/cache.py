"""The cache of what takes a pass over files to find out."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..files import replace_file
from .lines import unreadable
from .stream import DataError
from .vocabulary import Vocabulary

__all__ = ["FileCache"]

_T = TypeVar("_T")

_CACHE_FORMAT = 2


class FileCache:
    """Row counts and vocabularies of files, found again while the files stay the same.

    The key is the reader, its options, and the path, size and time of change of every
    file. A cache that cannot be read or written is ignored: it only saves time.

    Args:
      reader: Name of the reader.
      files: What it reads.
      options: What else its results depend on.
      cache_dir: Folder of the cache; by default the environment variable
        `FIITED_CACHE_DIR` or else `~/.cache/fiited_jax`.

    Raises:
      DataError: A file is missing or not a regular file.
    """

    def __init__(
        self,
        reader: str,
        files: Sequence[Path],
        options: Sequence[float | str],
        cache_dir: str | os.PathLike[str] | None,
    ):
        key = (_CACHE_FORMAT, *map(_identity, files), *options)
        digest = hashlib.sha256(repr(key).encode()).hexdigest()
        folder = _folder(cache_dir)
        self._stem = folder / f"{reader}-{digest[:32]}" if folder else None

    def counts(
        self, length: int, count: Callable[[], Sequence[int]]
    ) -> tuple[int, ...]:
        """Return numbers, the first of them a number of rows.

        Args:
          length: How many.
          count: Finds them out.
        """

        def load(path: Path) -> tuple[int, ...]:
            found = tuple(map(int, path.read_bytes().split()))
            if len(found) != length or found[0] < 1 or min(found) < 0:
                raise ValueError(f"{found} are not {length} counts")
            return found

        def save(path: Path, found: tuple[int, ...]) -> None:
            text = b" ".join(b"%d" % number for number in found)
            replace_file(path, lambda file: file.write(text))

        return self._recall(".rows", load, lambda: tuple(count()), save)

    def vocabulary(
        self, num_tables: int, batches: Callable[[], Iterable[np.ndarray]]
    ) -> Vocabulary:
        """Return the vocabulary of the ids int64[B, num_tables] that `batches` gives.

        Args:
          num_tables: Number of tables.
          batches: Starts a pass over the ids.
        """

        def load(path: Path) -> Vocabulary:
            found = Vocabulary.load(path)
            if found.num_tables != num_tables:
                raise ValueError(f"{found.num_tables} tables instead of {num_tables}")
            return found

        return self._recall(
            ".npz",
            load,
            lambda: Vocabulary.from_batches(batches(), num_tables),
            lambda path, found: found.save(path),
        )

    def _recall(
        self,
        suffix: str,
        load: Callable[[Path], _T],
        find: Callable[[], _T],
        save: Callable[[Path, _T], None],
    ) -> _T:
        if self._stem is None:
            return find()
        path = self._stem.with_suffix(suffix)
        with contextlib.suppress(OSError, ValueError):  # missing or damaged
            return load(path)
        found = find()
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, found)
        return found


def _identity(path: Path) -> tuple[str, int, int]:
    try:
        resolved = path.resolve()
        status = resolved.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise unreadable(path, error, "a readable file") from error
    if not resolved.is_file():
        raise DataError(f"{path}: is not a regular file, one is needed")
    return str(resolved), status.st_size, status.st_mtime_ns


def _folder(cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return the cache's folder, None where there is no home."""
    cache_dir = cache_dir or os.environ.get("FIITED_CACHE_DIR")
    if cache_dir:
        return Path(cache_dir)
    try:
        return Path.home() / ".cache" / "fiited_jax"
    except RuntimeError:
        return None
