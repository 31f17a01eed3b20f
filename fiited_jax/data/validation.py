"""A validation slice, cut off the train split of a stream."""

from __future__ import annotations

from collections.abc import Iterator

from .stream import Batch, BayesReference, ClickStream, Split, rebatch, split_bounds
from .vocabulary import Vocabulary

__all__ = ["ValidationStream"]

_READ_SIZE = 1 << 14


class ValidationStream:
    """The train split of a stream as a stream: its end is the test split of this one.

    The test split of the stream itself is never read. The vocabulary is that of the
    examples before the slice, so that an id first met in the slice is unknown, as one
    of a test split is.

    Args:
      stream: What to cut.
      validation_fraction: Share of the train split in the slice, above 0 and below 1;
        both parts must hold an example.

    Raises:
      ValueError: `validation_fraction` is out of range or leaves a part empty.

    >>> from fiited_jax.data import DemoStream
    >>> stream = ValidationStream(DemoStream(num_train=1000, num_test=1), 0.1)
    >>> stream.num_train, stream.num_test
    (900, 100)
    """

    def __init__(self, stream: ClickStream, validation_fraction: float):
        fraction = validation_fraction if 0 < validation_fraction < 1 else 0.0
        num_test = round(stream.num_train * fraction)
        if not 0 < num_test < stream.num_train:
            raise ValueError(
                "validation_fraction must be above 0 and below 1 and leave each part "
                f"of the {stream.num_train} train examples at least one, "
                f"got {validation_fraction}"
            )
        self.name = stream.name
        self.num_dense = stream.num_dense
        self.num_tables = stream.num_tables
        self.num_train = stream.num_train - num_test
        self.num_test = num_test
        self._stream = stream
        self._vocabulary: Vocabulary | None = None

    def batches(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Iterate over a split in stream order; see `ClickStream.batches`.

        A pass over the slice reads what is before it, too.
        """
        return rebatch(self._examples(*split_bounds(self, split)), batch_size)

    def vocabulary(self) -> Vocabulary:
        """Return the distinct (table, id) pairs before the slice, computed once."""
        if self._vocabulary is None:
            self._vocabulary = Vocabulary.from_batches(
                (batch.ids for batch in self._examples(0, self.num_train)),
                self.num_tables,
            )
        return self._vocabulary

    def bayes(self) -> BayesReference | None:
        """Return None: what a perfect model reaches on the slice is not known."""
        return None

    def _examples(self, start: int, stop: int) -> Iterator[Batch]:
        """Iterate over examples [start, stop) of the train split, in any batches."""
        first = 0
        for batch in self._stream.batches("train", _READ_SIZE):
            part = slice(max(start - first, 0), max(stop - first, 0))
            yield Batch(*(array[part] for array in batch))
            first += len(batch.labels)
            if first >= stop:
                return
