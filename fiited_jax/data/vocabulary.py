"""The vocabulary: the distinct (table, id) pairs of a training split."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..files import replace_file
from .stream import DataError, check_count

__all__ = ["Vocabulary"]

_MIN_BUFFER_ROWS = 1 << 17
_MAX_PAIRS = np.iinfo(np.int32).max


class Vocabulary:
    """The distinct (table, id) pairs of a training split, numbered from 0.

    Pairs are numbered table after table, by ascending id within a table. A vocabulary
    never changes: its arrays are read-only.

    Args:
      tables: Per table the ids int64[N], sorted, unique and not negative.

    Raises:
      ValueError: An array breaks the rule above, or there are more pairs than int32
        can number.

    >>> vocabulary = Vocabulary.from_batches([np.array([[7, 5], [3, -1]])], 2)
    >>> vocabulary.num_pairs
    3
    >>> vocabulary.rows(np.array([[7, 7], [3, 5]])).tolist()
    [[1, -1], [0, 2]]
    """

    __slots__ = ("_offsets", "_tables")

    def __init__(self, tables: Iterable[np.ndarray]):
        self._tables = tuple(
            _frozen_ids(ids, table) for table, ids in enumerate(tables)
        )
        self._offsets = np.cumsum([0, *(len(ids) for ids in self._tables)])
        if self.num_pairs > _MAX_PAIRS:
            raise ValueError(
                f"tables hold {self.num_pairs} pairs, at most {_MAX_PAIRS} are allowed"
            )

    @classmethod
    def from_batches(cls, batches: Iterable[np.ndarray], num_tables: int) -> Vocabulary:
        """Collect the vocabulary of a stream of id arrays.

        Memory is bounded by the vocabulary (and one buffer), not by the stream. The
        buffer grows with the largest table, which keeps the time linear up to sorting.

        Args:
          batches: Arrays int64[B, num_tables] with any B; negative ids are padding
            and are left out.
          num_tables: Number of tables, at least 1.

        Raises:
          ValueError: `num_tables` is below 1 or an array is not an integer array
            with `num_tables` columns.
        """
        check_count("num_tables", num_tables)
        tables = [np.empty(0, np.int64) for _ in range(num_tables)]
        buffer: list[np.ndarray] = []
        buffered = 0
        for ids in batches:
            _check_ids(ids, num_tables)
            buffer.append(ids)
            buffered += len(ids)
            if buffered >= max(_MIN_BUFFER_ROWS, *map(len, tables)):
                tables = _merge(tables, buffer)
                buffer, buffered = [], 0
        return cls(ids[ids >= 0] for ids in _merge(tables, buffer))

    @property
    def num_tables(self) -> int:
        """Number of tables."""
        return len(self._tables)

    @property
    def num_pairs(self) -> int:
        """Number of distinct pairs, over all tables."""
        return int(self._offsets[-1])

    @property
    def tables(self) -> tuple[np.ndarray, ...]:
        """Per table its ids, int64[N], sorted, unique and read-only."""
        return self._tables

    @property
    def id_bits(self) -> int:
        """32 if that is enough for every id, else 64."""
        largest = max((int(ids[-1]) for ids in self._tables if len(ids)), default=0)
        return 32 if largest < 1 << 32 else 64

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of every pair.

        Args:
          ids: int64[B, num_tables].

        Returns:
          int32[B, num_tables]: the number of the pair, -1 where the pair is unknown
          or the id is negative (padding).

        Raises:
          ValueError: `ids` is not an integer array with `num_tables` columns.
        """
        _check_ids(ids, self.num_tables)
        rows = np.full(ids.shape, -1, np.int32)
        for table, known in enumerate(self._tables):
            if len(known) == 0:
                continue
            column = ids[:, table]
            place = np.minimum(np.searchsorted(known, column), len(known) - 1)
            found = known[place] == column
            rows[found, table] = self._offsets[table] + place[found]
        return rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as .npz; the file appears whole or not at all.

        Args:
          path: File to write or replace; its folder must exist.
        """
        ids = np.concatenate([np.empty(0, np.int64), *self._tables])
        offsets = self._offsets
        replace_file(path, lambda file: np.savez(file, ids=ids, offsets=offsets))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
          DataError: The file is missing, unreadable, damaged or not a vocabulary.
        """
        try:
            # np.load leaves a damaged file open if it opened it.
            with Path(path).open("rb") as file:
                arrays = np.load(file, allow_pickle=False)
                ids, offsets = arrays["ids"], arrays["offsets"]
            if offsets.ndim != 1 or len(offsets) < 1 or offsets[-1] != len(ids):
                raise ValueError("ids and offsets do not fit together")
            return cls(np.split(ids, offsets[1:-1]) if len(offsets) > 1 else [])
        except Exception as error:  # a damaged archive raises errors of many kinds
            raise DataError(
                f"{os.fspath(path)}: not a vocabulary ({error}); "
                "a .npz file written by Vocabulary.save is needed"
            ) from error


def _merge(tables: list[np.ndarray], buffer: list[np.ndarray]) -> list[np.ndarray]:
    return [
        np.unique(np.concatenate([known, *(ids[:, table] for ids in buffer)]))
        for table, known in enumerate(tables)
    ]


def _frozen_ids(ids: np.ndarray, table: int) -> np.ndarray:
    if ids.ndim != 1 or ids.dtype.kind != "i":
        raise ValueError(
            f"tables[{table}] has shape {ids.shape} and dtype {ids.dtype}, "
            "must be int64[N]"
        )
    if len(ids) and (ids[0] < 0 or np.any(ids[1:] <= ids[:-1])):
        raise ValueError(
            f"tables[{table}] must hold sorted, unique ids that are not negative"
        )
    ids = ids.astype(np.int64)
    ids.flags.writeable = False
    return ids


def _check_ids(ids: np.ndarray, num_tables: int) -> None:
    if ids.ndim != 2 or ids.shape[1] != num_tables or ids.dtype.kind != "i":
        raise ValueError(
            f"ids has shape {ids.shape} and dtype {ids.dtype}, "
            f"must be int64[B, {num_tables}]"
        )
