"""The click stream: labelled examples in time order, in batches.

A stream has two splits, `"train"` followed in time by `"test"`. Every example has
one dense vector and one id per table. Everything here is plain numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

import numpy as np

if TYPE_CHECKING:
    from .vocabulary import Vocabulary

__all__ = [
    "MISSING_CATEGORY",
    "PADDING",
    "Batch",
    "BayesReference",
    "ClickStream",
    "DataError",
    "Split",
    "check_count",
    "rebatch",
    "split_bounds",
]

Split = Literal["train", "test"]
"""The two parts of a stream; the test split is the later one."""

PADDING = -1
"""The id of a field without a value: no embedding row belongs to it."""

MISSING_CATEGORY = 1 << 32
"""Id of an empty category: outside the 32-bit values, so it is shared with none."""


class DataError(ValueError):
    """Input data that cannot be used.

    The message says which file, what was found and what is allowed.
    """


class Batch(NamedTuple):
    """Consecutive examples of a stream.

    Attributes:
      labels: float32[B], 0 (not clicked) or 1 (clicked).
      dense: float32[B, num_dense], already transformed for the model.
      ids: int64[B, num_tables], one id per table; `PADDING` (-1) is no value.
    """

    labels: np.ndarray
    dense: np.ndarray
    ids: np.ndarray


class BayesReference(NamedTuple):
    """What a model that knows the true click probabilities reaches on the test split.

    Attributes:
      auc: Area under the ROC curve, between 0 and 1.
      log_loss: Mean negative log-likelihood in nats.
    """

    auc: float
    log_loss: float


class ClickStream(Protocol):
    """A source of training and test examples.

    Attributes:
      name: Short name for reports, such as `"criteo"`.
      num_dense: Width of `Batch.dense`.
      num_tables: Width of `Batch.ids`.
      num_train: Examples in the train split.
      num_test: Examples in the test split.
    """

    name: str
    num_dense: int
    num_tables: int
    num_train: int
    num_test: int

    def batches(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Iterate over a split in stream order; each call starts from its beginning.

        Args:
          split: `"train"` or `"test"`.
          batch_size: Examples per batch; only the last batch may be shorter.

        Raises:
          ValueError: Unknown split or `batch_size` below 1.
          DataError: The source holds data that cannot be used.
        """
        ...

    def vocabulary(self) -> Vocabulary:
        """Return the distinct (table, id) pairs of the train split, computed once."""
        ...

    def bayes(self) -> BayesReference | None:
        """Return what a perfect model reaches on the test split, None if unknown."""
        ...


def split_bounds(stream: ClickStream, split: Split) -> tuple[int, int]:
    """Return where a split starts and stops, counted in examples of the whole stream.

    Raises:
      ValueError: Unknown split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}, must be one of {get_args(Split)}")
    if split == "train":
        return 0, stream.num_train
    return stream.num_train, stream.num_train + stream.num_test


def check_count(name: str, value: int | np.integer, low: int = 1) -> None:
    """Raise a `ValueError` unless argument `name` is an integer from `low` up."""
    if not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name} is {value!r}, must be an integer of at least {low}")


def rebatch(batches: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """Cut or join batches of any size into full ones, keeping the order.

    Every example is copied at most once, however small or large the parts are; a
    batch that lies inside one part is a view of it.

    Args:
      batches: Batches of any length, empty ones included.
      batch_size: Examples per batch; only the last batch may be shorter.

    Returns:
      An iterator over the new batches; none of them is empty.

    Raises:
      ValueError: `batch_size` is below 1.

    >>> part = Batch(np.zeros(3), np.zeros((3, 2)), np.zeros((3, 1), np.int64))
    >>> [len(batch.labels) for batch in rebatch([part, part], 4)]
    [4, 2]
    """
    check_count("batch_size", batch_size)
    return _rebatch(batches, batch_size)


def _rebatch(batches: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    parts: list[Batch] = []
    missing = batch_size
    for batch in batches:
        start, stop = 0, len(batch.labels)
        while stop - start >= missing:
            parts.append(_cut(batch, start, start + missing))
            start += missing
            yield _join(parts)
            parts, missing = [], batch_size
        if start < stop:
            parts.append(_cut(batch, start, stop))
            missing -= stop - start
    if parts:
        yield _join(parts)


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    return Batch(*(array[start:stop] for array in batch))


def _join(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return Batch(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
