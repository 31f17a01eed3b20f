"""A generated click stream with a known best answer, for use without any data set.

Ids follow a Zipf law in every table. The popularity ranks stay, but the id that holds
a rank is replaced by a fresh id now and then, so that new ids keep arriving and old
ones fade. Labels are drawn from a planted logistic model whose probabilities are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

from .planted import (
    NUM_DENSE,
    NUM_TABLES,
    Change,
    check_changes,
    draw,
    generator,
    plant,
    raw_logits,
)
from .stream import Batch, BayesReference, Split, check_count, rebatch, split_bounds
from .vocabulary import Vocabulary

__all__ = ["DemoStream"]

_BLOCK = 1 << 14
_CLICK_RATE = 0.25
_LOGIT_STD = 1.5


class DemoStream:
    """A generated click stream: 26 tables, 13 dense features, click rate about 0.25.

    The stream is a function of `seed`, `lifetime` and `changes`, of the last only from
    the first change on; `num_train` and `num_test` say where it is cut, and the test
    split goes on in time where the train split ends. It is made lazily in blocks of
    which any can be made alone, so memory does not grow with its length, and it is
    bit-reproducible on one build of numpy. After changes the click rate may be another.

    Args:
      num_train: Examples in the train split, at least 1.
      num_test: Examples in the test split, at least 1.
      seed: Seed of the planted model and the draws, not negative.
      lifetime: Mean number of examples for which an id holds its popularity rank,
        between 2 and 2**30, or None for no drift.
      changes: Sudden changes of who is popular and of what ids do, in any order.

    Raises:
      ValueError: An argument is out of range.

    >>> stream = DemoStream(num_train=1000, num_test=500)
    >>> [len(batch.labels) for batch in stream.batches("test", 300)]
    [300, 200]
    """

    name = "demo"
    num_dense = NUM_DENSE
    num_tables = NUM_TABLES

    def __init__(
        self,
        num_train: int = 200_000,
        num_test: int = 40_000,
        seed: int = 0,
        *,
        lifetime: int | None = 300_000,
        changes: Sequence[Change] = (),
    ):
        check_count("num_train", num_train)
        check_count("num_test", num_test)
        check_count("seed", seed, low=0)
        if lifetime is not None and not 2 <= lifetime <= 1 << 30:
            raise ValueError(
                f"lifetime is {lifetime}, must be None or between 2 and {1 << 30}"
            )
        changes = check_changes(changes)
        self.num_train = num_train
        self.num_test = num_test
        self.seed = seed
        self.lifetime = lifetime
        self.changes = changes
        self._planted = plant(seed, lifetime)
        self._scale, self._bias = self._calibrate()
        self._vocabulary: Vocabulary | None = None
        self._bayes: BayesReference | None = None

    def batches(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Iterate over a split in time order; see `ClickStream.batches`."""
        return rebatch(
            (batch for batch, _ in self._examples(*split_bounds(self, split))),
            batch_size,
        )

    def probabilities(self, split: Split) -> np.ndarray:
        """Return the true click probabilities of a split.

        Returns:
          float64[num_train or num_test], in the order of `batches`.
        """
        return np.concatenate(
            [truth for _, truth in self._examples(*split_bounds(self, split))]
        )

    def vocabulary(self) -> Vocabulary:
        """Return the distinct (table, id) pairs of the train split, computed once."""
        if self._vocabulary is None:
            self._vocabulary = Vocabulary.from_batches(
                (batch.ids for batch, _ in self._examples(0, self.num_train)),
                NUM_TABLES,
            )
        return self._vocabulary

    def bayes(self) -> BayesReference:
        """Return AUC and log loss of the true probabilities on the test split.

        The AUC of a split with labels of one kind only is undefined, nan.
        """
        if self._bayes is None:
            parts = [
                (batch.labels, truth)
                for batch, truth in self._examples(*split_bounds(self, "test"))
            ]
            labels = np.concatenate([labels for labels, _ in parts])
            truth = np.concatenate([truth for _, truth in parts])
            both = 0 < labels.mean() < 1
            self._bayes = BayesReference(
                float(roc_auc_score(labels, truth)) if both else float("nan"),
                float(log_loss(labels, truth, labels=[0, 1])),
            )
        return self._bayes

    def _examples(self, start: int, stop: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yield examples [start, stop) in parts, with the true click probabilities."""
        for block in range(start // _BLOCK, -(-stop // _BLOCK)):
            batch, truth = self._block(block)
            first = block * _BLOCK
            part = slice(max(start - first, 0), min(stop - first, _BLOCK))
            yield Batch(*(array[part] for array in batch)), truth[part]

    def _block(self, block: int) -> tuple[Batch, np.ndarray]:
        source = generator(self.seed, 1, block)
        times = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
        ids, dense = draw(self._planted, times, source, self.changes)
        raw = raw_logits(self._planted, times, ids, dense, self.changes)
        truth = 1 / (1 + np.exp(-self._scale * raw - self._bias))
        labels = (source.random(_BLOCK) < truth).astype(np.float32)
        # Fields are made one by one, hence contiguous; models want examples contiguous.
        return Batch(labels, dense, np.ascontiguousarray(ids.T)), truth

    def _calibrate(self) -> tuple[float, float]:
        """Return scale and bias that give about the intended spread and click rate.

        Changes are left out: what comes before them does not depend on them.
        """
        times = np.arange(_BLOCK) * 16
        ids, dense = draw(self._planted, times, generator(self.seed, 0, 1))
        logits = raw_logits(self._planted, times, ids, dense)
        scale = _LOGIT_STD / logits.std()
        logits *= scale
        low, high = -logits.max() - 10, -logits.min() + 10
        for _ in range(60):
            bias = (low + high) / 2
            if np.mean(1 / (1 + np.exp(-logits - bias))) < _CLICK_RATE:
                low = bias
            else:
                high = bias
        return float(scale), float((low + high) / 2)
