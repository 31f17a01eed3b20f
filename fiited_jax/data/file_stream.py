"""What the streams over files share: the split, the batches, the vocabulary."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .cache import FileCache
from .stream import Batch, BayesReference, DataError, Split, rebatch, split_bounds
from .vocabulary import Vocabulary

__all__ = ["FileStream"]


class FileStream(abc.ABC):
    """A click stream over files; the last rows of the stream are the test split.

    A subclass calls `_cut` when it knows the number of rows, and iterates over any
    range of them in `_examples`.

    Args:
      path: What the user named.
      test_fraction: Share of the stream in the test split, above 0 and below 1.
      cache_dir: Folder of the cache, see `FileCache`.
      files: The files that are read, by default `path` alone.
      options: What the order of rows depends on besides the files.

    Raises:
      DataError: A file is missing or not a regular file.
      ValueError: `test_fraction` is out of range.
    """

    name: str
    num_dense: int
    num_tables: int
    num_train: int
    num_test: int

    def __init__(
        self,
        path: str | os.PathLike[str],
        test_fraction: float,
        cache_dir: str | os.PathLike[str] | None,
        *,
        files: Sequence[Path] | None = None,
        options: Sequence[float | str] = (),
    ):
        if not 0 < test_fraction < 1:
            raise ValueError(
                f"test_fraction is {test_fraction}, must be above 0 and below 1"
            )
        self.path = Path(path)
        self._test_fraction = float(test_fraction)
        self._vocabulary: Vocabulary | None = None
        files = [self.path] if files is None else files
        options = (self._test_fraction, *options)
        self._cache = FileCache(self.name, files, options, cache_dir)

    def batches(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Iterate over a split in stream order; see `ClickStream.batches`."""
        return rebatch(self._examples(*split_bounds(self, split)), batch_size)

    def vocabulary(self) -> Vocabulary:
        """Return the distinct (table, id) pairs of the train split, computed once."""
        if self._vocabulary is None:
            self._vocabulary = self._cache.vocabulary(
                self.num_tables,
                lambda: (batch.ids for batch in self._examples(0, self.num_train)),
            )
        return self._vocabulary

    def bayes(self) -> BayesReference | None:
        """Return None: the true click probabilities are unknown."""
        return None

    @abc.abstractmethod
    def _examples(self, start: int, stop: int) -> Iterator[Batch]:
        """Iterate over rows [start, stop) of the stream, in batches of any size."""

    def _cut(self, num_rows: int, num_test: int | None = None) -> None:
        """Cut the rows into the two splits, by default by the share of rows."""
        if num_test is None:
            num_test = round(num_rows * self._test_fraction)
        self.num_test = num_test
        self.num_train = num_rows - self.num_test
        if not self.num_train or not self.num_test:
            raise DataError(
                f"{self.path}: {num_rows} rows with test_fraction "
                f"{self._test_fraction} make {self.num_train} train and "
                f"{self.num_test} test rows; each split needs at least 1"
            )

    def _check_end(self, row: int, stop: int) -> None:
        """Raise a `DataError` if the file ended before row `stop`."""
        if row < stop:
            raise DataError(
                f"{self.path}: ends after {row} rows but had "
                f"{self.num_train + self.num_test} when it was opened; "
                "it must not change in use"
            )
