"""A generated click stream with a known best answer, for use without any data set.

Ids follow a Zipf law in every table. The popularity ranks stay, but the id that holds
a rank is replaced by a fresh id now and then, so that new ids keep arriving and old
ones fade. Labels are drawn from a planted logistic model whose probabilities are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

from .stream import Batch, BayesReference, Split, check_count, rebatch, split_bounds
from .vocabulary import Vocabulary

__all__ = ["DemoStream"]

_BLOCK = 1 << 14
_ID_BITS = 31
_NUM_DENSE = 13
_CLICK_RATE = 0.25
_LOGIT_STD = 1.5

# Ranks per table, about as in Criteo: few values, many values, and open-ended ones.
_CARDINALITIES = (
    *(1_000, 500, 300_000, 60_000, 200, 18, 8_000, 150, 3, 20_000),
    *(3_000, 600_000, 2_000, 24, 5_000, 100_000, 10, 1_500, 600, 4),
    *(1_000_000, 12, 300, 200_000, 100, 30_000),
)
_NUM_TABLES = len(_CARDINALITIES)

# Ids of tables with fewer ranks are kinds (weekday, device) rather than items and stay.
_FIRST_DRIFTING = 100

# Effects of ids are strongest in tables with fewer ranks than this: drawn often enough
# to be learned, and yet many.
_FIRST_LARGE = 10_000

# Tables whose hidden factors are multiplied: small enough to be learned from the demo.
_PAIRS = ((0, 5), (1, 8), (4, 16), (7, 13), (18, 19), (22, 21), (24, 5), (12, 8))
_NUM_FACTORS = 3
_INTERACTION = 0.35
_DENSE_WEIGHT = 0.35

_NORMAL_BITS = 16


class _Planted(NamedTuple):
    """The planted model of one seed.

    Attributes:
      exponents: float64[tables], of the Zipf laws.
      lifetimes: int64[tables], examples for which an id holds a rank; 0 is forever.
      salts: uint64[tables], keys of the hashes that give ids their effects.
      normals: float64[2**16], the values that hashes pick from.
      dense_scales: float64[dense], of the counts behind the dense features.
      dense_weights: float64[dense].
    """

    exponents: np.ndarray
    lifetimes: np.ndarray
    salts: np.ndarray
    normals: np.ndarray
    dense_scales: np.ndarray
    dense_weights: np.ndarray


class DemoStream:
    """A generated click stream: 26 tables, 13 dense features, click rate about 0.25.

    The stream is a function of `seed` and `lifetime` alone; `num_train` and
    `num_test` say where it is cut, and the test split goes on in time where the train
    split ends. It is made lazily in blocks of which any can be made alone, so memory
    does not grow with its length, and it is bit-reproducible on one build of numpy.

    Args:
      num_train: Examples in the train split, at least 1.
      num_test: Examples in the test split, at least 1.
      seed: Seed of the planted model and the draws, not negative.
      lifetime: Mean number of examples for which an id holds its popularity rank,
        between 2 and 2**30, or None for no drift.

    Raises:
      ValueError: An argument is out of range.

    >>> stream = DemoStream(num_train=1000, num_test=500)
    >>> [len(batch.labels) for batch in stream.batches("test", 300)]
    [300, 200]
    """

    name = "demo"
    num_dense = _NUM_DENSE
    num_tables = _NUM_TABLES

    def __init__(
        self,
        num_train: int = 200_000,
        num_test: int = 40_000,
        seed: int = 0,
        *,
        lifetime: int | None = 300_000,
    ):
        check_count("num_train", num_train)
        check_count("num_test", num_test)
        check_count("seed", seed, low=0)
        if lifetime is not None and not 2 <= lifetime <= 1 << 30:
            raise ValueError(
                f"lifetime is {lifetime}, must be None or between 2 and {1 << 30}"
            )
        self.num_train = num_train
        self.num_test = num_test
        self.seed = seed
        self.lifetime = lifetime
        self._planted = _plant(seed, lifetime)
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
                _NUM_TABLES,
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
        generator = _generator(self.seed, 1, block)
        times = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
        ids, dense = _draw(self._planted, times, generator)
        logits = self._scale * _raw_logits(self._planted, ids, dense) + self._bias
        truth = 1 / (1 + np.exp(-logits))
        labels = (generator.random(_BLOCK) < truth).astype(np.float32)
        # Fields are made one by one, hence contiguous; models want examples contiguous.
        return Batch(labels, dense, np.ascontiguousarray(ids.T)), truth

    def _calibrate(self) -> tuple[float, float]:
        """Return scale and bias that give about the intended spread and click rate."""
        times = np.arange(_BLOCK) * 16
        ids, dense = _draw(self._planted, times, _generator(self.seed, 0, 1))
        logits = _raw_logits(self._planted, ids, dense)
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


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _plant(seed: int, lifetime: int | None) -> _Planted:
    generator = _generator(seed, 0, 0)
    exponents = generator.uniform(1.02, 1.2, _NUM_TABLES)
    lifetimes = np.zeros(_NUM_TABLES, np.int64)
    if lifetime is not None:
        spread = generator.uniform(0.5, 1.5, _NUM_TABLES)
        lifetimes[:] = np.maximum(lifetime * spread, 1)
        lifetimes[np.less(_CARDINALITIES, _FIRST_DRIFTING)] = 0
    return _Planted(
        exponents,
        lifetimes,
        generator.integers(1 << 64, size=_NUM_TABLES, dtype=np.uint64),
        generator.standard_normal(1 << _NORMAL_BITS),
        generator.uniform(1, 20, _NUM_DENSE),
        generator.standard_normal(_NUM_DENSE),
    )


def _draw(
    planted: _Planted, times: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ids int64[tables, B] and dense float32[B, num_dense] for times int64[B]."""
    ids = np.empty((_NUM_TABLES, len(times)), np.int64)
    for table, ranks in enumerate(_CARDINALITIES):
        uniform = generator.random(len(times))
        rank = _zipf_ranks(uniform, ranks, planted.exponents[table])
        ids[table] = _holders(rank, times, ranks, int(planted.lifetimes[table]))
    counts = generator.standard_exponential((len(times), _NUM_DENSE), np.float32)
    counts *= planted.dense_scales.astype(np.float32)
    return ids, np.log1p(np.floor(counts))


def _zipf_ranks(uniform: np.ndarray, ranks: int, exponent: float) -> np.ndarray:
    """Turn uniforms into ranks 0..ranks-1 by inverting a power law's integral.

    The density x**-exponent on [1, ranks + 1), rounded down, is close to the Zipf law
    and needs no table.
    """
    power = 1 - exponent
    rank = (1 + uniform * ((ranks + 1) ** power - 1)) ** (1 / power)
    return np.minimum(rank.astype(np.int64), ranks) - 1


def _holders(
    rank: np.ndarray, times: np.ndarray, ranks: int, lifetime: int
) -> np.ndarray:
    """Return the id, in [0, 2**31), that holds each rank at each time."""
    number = rank
    if lifetime:
        # Golden-ratio steps spread the replacements of neighbouring ranks over time.
        phase = ((rank * 0x9E3779B1 & 0xFFFFFFFF) * lifetime) >> 32
        number = rank + (times + phase) // lifetime * ranks
    # An odd factor permutes [0, 2**31): ids look like hashes, and stay distinct until
    # a table has used up all of them.
    return number * 0x5851F42D & ((1 << _ID_BITS) - 1)


def _raw_logits(planted: _Planted, ids: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Return uncalibrated logits float64[B] of ids [tables, B] and dense [B, 13]."""
    centred = dense - np.log1p(planted.dense_scales)
    logits = _DENSE_WEIGHT * (centred @ planted.dense_weights)
    hashes = list(map(_hash, ids, planted.salts))
    for ranks, hashed in zip(_CARDINALITIES, hashes, strict=True):
        logits += _table_weight(ranks) * _normal(planted, hashed, 0)
    for left, right in _PAIRS:
        for factor in range(1, 1 + _NUM_FACTORS):
            product = _normal(planted, hashes[left], factor)
            product *= _normal(planted, hashes[right], factor)
            logits += _INTERACTION / _NUM_FACTORS**0.5 * product
    return logits


def _table_weight(ranks: int) -> float:
    """Return the standard deviation of the effects of a table's ids."""
    if ranks < _FIRST_DRIFTING:
        return 0.4
    return 0.5 if ranks < _FIRST_LARGE else 0.2


def _hash(ids: np.ndarray, salt: np.uint64) -> np.ndarray:
    """Hash ids int64[B] to uint64[B] with well mixed bits (multiply and xor-shift)."""
    mixed = (ids.astype(np.uint64) + salt) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _normal(planted: _Planted, hashed: np.ndarray, number: int) -> np.ndarray:
    """Return the normal deviate float64[B] that 16 bits (0..3) of a hash stand for."""
    bits = hashed >> np.uint64(number * _NORMAL_BITS)
    return planted.normals[(bits & np.uint64((1 << _NORMAL_BITS) - 1)).astype(np.intp)]
