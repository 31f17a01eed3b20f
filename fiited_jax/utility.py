"""Utilities: how they decay, how they grow, and which chunks are worth a frame."""

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["MAX_UTILITY", "accumulate", "decay", "select_top"]

MAX_UTILITY = 1e30  # keeps sums and decay finite


def decay(utility: jax.Array, age: jax.Array, half_life: float) -> jax.Array:
    """Decay utilities by their age.

    Args:
      utility: `f32[...]`.
      age: `i32[...]` steps since they were last brought up to date; negative is 0.
      half_life: steps in which a utility halves.

    Returns:
      `f32[...]`, `utility * 2 ** (-age / half_life)`.

    References:
      The gamma of arXiv:2401.04408, as a half-life; applied lazily, when a utility
      is read, instead of to every chunk in every step.
    """
    steps = jnp.maximum(age, 0).astype(jnp.float32)
    return utility * jnp.exp2(steps * (-1.0 / half_life))


def accumulate(utility: jax.Array, score: jax.Array) -> jax.Array:
    """Add what a batch scored to decayed utilities.

    Args:
      utility: `f32[N, K]`, decayed to now.
      score: `f32[N, K]` from a scorer; negative scores and those that are not finite
        count as 0.

    Returns:
      `f32[N, K]`, at most `MAX_UTILITY`.
    """
    gain = jnp.where((score > 0) & jnp.isfinite(score), score, 0.0)
    return jnp.minimum(utility + gain, MAX_UTILITY)


def select_top(
    utility: jax.Array, candidate: jax.Array, target: int
) -> tuple[jax.Array, jax.Array]:
    """Choose the `target` candidates of highest utility; ties go to lower indices.

    Exact, and without a sort: non-negative floats order as their bits do, so the
    threshold is found bit by bit, and the cut among equals likewise. Each pass needs
    nothing but a count, which a sharded pool can sum over devices.

    Args:
      utility: `f32[n]`, at least 0.
      candidate: `bool[n]`, which elements may be chosen.
      target: how many to choose; fewer are chosen only if fewer are candidates.

    Returns:
      `bool[n]` the chosen ones, and `f32[]` the utility that all of them reach.

    >>> utility = jnp.array([3.0, 1.0, 2.0, 1.0, 9.0])
    >>> select_top(utility, utility < 9.0, 3)[0]
    Array([ True,  True,  True, False, False], dtype=bool)
    """
    # -1 ranks below every utility; -0.0 would have the sign bit.
    bits = lax.bitcast_convert_type(jnp.abs(utility), jnp.int32)
    bits = jnp.where(candidate, bits, -1)

    def narrow(i: jax.Array, floor: jax.Array) -> jax.Array:
        probe = floor | (1 << (30 - i))
        return jnp.where(jnp.sum(bits >= probe) >= target, probe, floor)

    # The largest threshold that at least `target` reach, 0 if so many do not exist.
    threshold = lax.fori_loop(0, 31, narrow, jnp.int32(0))
    missing = target - jnp.sum(bits > threshold)
    tied = bits == threshold
    index = lax.iota(jnp.int32, bits.size)
    width = max(bits.size.bit_length(), 1)

    def widen(i: jax.Array, cut: jax.Array) -> jax.Array:
        probe = cut | (1 << (width - 1 - i))
        return jnp.where(jnp.sum(tied & (index < probe)) <= missing, probe, cut)

    # The largest cut before which at most `missing` tie.
    cut = lax.fori_loop(0, width, widen, jnp.int32(0))
    chosen = (bits > threshold) | (tied & (index < cut))
    return chosen, lax.bitcast_convert_type(threshold, jnp.float32)
