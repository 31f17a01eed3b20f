"""Scorers: how much a batch adds to the utility of what it touched.

A scorer is any hashable function `score(stats) -> f32[N, U]`. The store calls it with
statistics of the batch, a row per touched entry: of each of its K chunks with
`ranking="chunks"` (U = K), of the whole vector with `"lengths"` (U = 1). It adds the
result to the decayed utility. Scores that are negative or not finite count as 0.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "SCORERS",
    "ScoreStats",
    "Scorer",
    "fiited",
    "frequency",
    "grad_norm",
    "saliency",
]


class ScoreStats(NamedTuple):
    """What a scorer sees of a batch; N rows, U parts per row: chunks or the vector.

    Attributes:
      count: `f32[N, U]` how often the entry occurs in the batch.
      grad_norm: `f32[N, U]` L2 norm of the part's summed gradient.
      sum_of_norms: `f32[N, U]` sum over occurrences of the gradient's L2 norm.
      value_dot_grad: `f32[N, U]` inner product of the part's values and its summed
        gradient; chunks without a frame count as 0.
      table: `i32[N, U]` the entry's table.
    """

    count: jax.Array
    grad_norm: jax.Array
    sum_of_norms: jax.Array
    value_dot_grad: jax.Array
    table: jax.Array


Scorer = Callable[[ScoreStats], jax.Array]


@functools.cache
def fiited() -> Scorer:
    """Access count times the norm of the summed gradient.

    Returns:
      A scorer.

    References:
      Luo et al., "Fine-grained embedding dimension optimization during training for
      recommender systems", arXiv:2401.04408, `u <- gamma u + a g`. The text leaves
      open whether `g` is the norm of the sum or the sum of norms; the other reading
      is `grad_norm`, which already carries the count.
    """

    def score(stats: ScoreStats) -> jax.Array:
        return stats.count * stats.grad_norm

    return score


@functools.cache
def grad_norm() -> Scorer:
    """Sum over occurrences of the gradient's norm: gradients do not cancel.

    Returns:
      A scorer.

    References:
      The second reading of arXiv:2401.04408; also the row score of CAFE, Zhang et
      al., SIGMOD 2024.
    """

    def score(stats: ScoreStats) -> jax.Array:
        return stats.sum_of_norms

    return score


@functools.cache
def frequency() -> Scorer:
    """Access count alone: all chunks of an entry rank together.

    Returns:
      A scorer.
    """

    def score(stats: ScoreStats) -> jax.Array:
        return stats.count

    return score


@functools.cache
def saliency(norm_weight: float = 0.1) -> Scorer:
    """First-order change of the loss if the chunk were zero.

    Args:
      norm_weight: weight of the summed gradient's norm that is added, so that a
        pruned chunk, whose values are zero, can return.

    Returns:
      A scorer, `|value . gradient| + norm_weight * norm`.

    Raises:
      ValueError: if `norm_weight` is not positive.
    """
    if not norm_weight > 0:
        raise ValueError(f"norm_weight must be positive, got {norm_weight}")

    def score(stats: ScoreStats) -> jax.Array:
        return jnp.abs(stats.value_dot_grad) + norm_weight * stats.grad_norm

    return score


SCORERS: dict[str, Callable[[], Scorer]] = {
    "fiited": fiited,
    "frequency": frequency,
    "grad_norm": grad_norm,
    "saliency": saliency,
}
