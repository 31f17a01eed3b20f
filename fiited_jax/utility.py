"""Utilities: how they are coded, how they grow and fade, and which chunks win.

All utilities of a state are decayed to the same step, so they compare as they are.
Instead of fading with every step, what a batch adds is worth more the later it comes;
`prune_step` scales everything back.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .keys import hash_words

__all__ = [
    "MAX_UTILITY",
    "PINNED",
    "SMALLEST",
    "Bounds",
    "accumulate",
    "decay_factor",
    "decode",
    "encode",
    "growth_factor",
    "rounding_salt",
    "select_top",
]

MAX_UTILITY = 1e30  # keeps sums and factors finite
# Above all others; neither decay nor rounding changes it.
PINNED = float("inf")
SMALLEST = 2.0**-126  # the smallest normal float32
# Without prune steps what is new may not outgrow float32: no decay beyond this.
_MAX_HALVINGS = 64.0
_NUM_CODES = 1 << 16
# A non-negative float32 without its sign bit and its 15 lowest bits of mantissa.
_DROPPED_BITS = 15


def decode(code: jax.Array) -> jax.Array:
    """Return the utilities of codes `u16[...]`, `f32[...]`."""
    bits = code.astype(jnp.uint32) << _DROPPED_BITS
    return lax.bitcast_convert_type(bits, jnp.float32)


def encode(utility: jax.Array, salt: jax.Array) -> jax.Array:
    """Round utilities to 16 bits: 8 of exponent, 8 of mantissa.

    Rounding is stochastic, so that many small scores add up to what they should, and
    is decided by `salt` alone.

    Args:
      utility: `f32[...]`, at least 0; what is not a normal number becomes 0.
      salt: `u32[...]` hashes.

    Returns:
      `u16[...]`; codes order as utilities do.

    >>> decode(encode(jnp.float32([0.0, 1.0, 3.0]), jnp.uint32([7, 8, 9])))
    Array([0., 1., 3.], dtype=float32)
    """
    # Subnormal numbers are 0 on some backends, in some operations: here on all.
    utility = jnp.where(utility < SMALLEST, 0.0, utility)
    bits = lax.bitcast_convert_type(utility, jnp.uint32)
    noise = salt >> (32 - _DROPPED_BITS)
    return ((bits + noise) >> _DROPPED_BITS).astype(jnp.uint16)


def decay_factor(steps: jax.Array, half_life: float) -> jax.Array:
    """Return what `steps` steps leave of a utility, `2 ** (-steps / half_life)`.

    At most 64 half-lives are counted between prune steps.

    References:
      The gamma of arXiv:2401.04408, as a half-life.
    """
    return jnp.exp2(-_halvings(steps, half_life))


def growth_factor(steps: jax.Array, half_life: float) -> jax.Array:
    """Return the inverse of `decay_factor`: what a score of `steps` later is worth."""
    return jnp.exp2(_halvings(steps, half_life))


def _halvings(steps: jax.Array, half_life: float) -> jax.Array:
    return jnp.minimum(steps.astype(jnp.float32) * (1.0 / half_life), _MAX_HALVINGS)


def accumulate(utility: jax.Array, score: jax.Array, growth: jax.Array) -> jax.Array:
    """Add what a batch scored.

    Args:
      utility: `f32[N, U]`.
      score: `f32[N, U]` from a scorer; negative scores and those that are not finite
        count as 0.
      growth: `f32[]` from `growth_factor`.

    Returns:
      `f32[N, U]`, at most `MAX_UTILITY`, but for `PINNED`, which stays.
    """
    gain = jnp.where((score > 0) & jnp.isfinite(score), score, 0.0)
    grown = utility + jnp.minimum(gain, MAX_UTILITY) * growth
    return jnp.where(utility == PINNED, PINNED, jnp.minimum(grown, MAX_UTILITY))


def rounding_salt(step: jax.Array, indices: jax.Array, purpose: int = 0) -> jax.Array:
    """Return the salts for `encode`, one per utility, `u32[...]`.

    Roundings of one step need a `purpose` each, or they would round alike.
    """
    words = step.astype(jnp.uint32), indices.astype(jnp.uint32), jnp.uint32(purpose)
    return hash_words(*words)


class Bounds(NamedTuple):
    """Which candidates of each element there are: `first[i]` to `limit[i] - 1`.

    `first` is at most `limit`.
    """

    first: jax.Array  # i32[n]
    limit: jax.Array  # i32[n]


def select_top(
    codes: jax.Array,
    owned: jax.Array,
    weights: tuple[float, ...],
    target: int | jax.Array,
    bounds: Bounds | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Choose the `target` candidates of highest priority; ties go to lower indices.

    Element i stands for K candidates, of the priorities `decode(codes[i]) * weights`;
    with no utility, only for its first `owned[i]`. Exact, and without a sort: codes
    are counted, then the threshold is found bit by bit, as non-negative floats order
    as their bits do. What is counted can be summed over the devices of a sharded pool.

    Args:
      codes: `u16[n]` from `encode`.
      owned: `i32[n]`, 0 to K.
      weights: K positive numbers, none larger than the one before.
      target: how many to choose; fewer are chosen only if fewer are candidates.
      bounds: which of the candidates there are; `None` for all. They are counted in
        K * 2^16 words.

    Returns:
      `i32[n]` how many of the candidates of each element are chosen, the first ones
      that there are, and `f32[]` the priority that all of them reach, infinite for a
      target of 0.

    >>> codes = encode(jnp.float32([3.0, 0.0, 8.0]), jnp.uint32([0, 0, 0]))
    >>> select_top(codes, jnp.array([0, 0, 0]), (1.0, 0.5), 3)
    (Array([1, 0, 2], dtype=int32), Array(3., dtype=float32))
    """
    scale = jnp.asarray(weights, jnp.float32)
    at_least = _count_at_least(codes, len(weights), bounds)

    def reaching(bits: jax.Array) -> jax.Array:
        """Count the candidates whose priority has at least these bits, 1 or more."""

        def halve(_: int, span: tuple[jax.Array, jax.Array]) -> Any:
            low, high = span  # the lowest code that reaches is in (low, high]
            middle = (low + high) // 2
            reaches = _bits(decode(middle) * scale) >= bits
            return jnp.where(reaches, low, middle), jnp.where(reaches, middle, high)

        nowhere = jnp.full(scale.shape, _NUM_CODES, jnp.int32)
        start = (jnp.zeros_like(nowhere), nowhere)
        _, lowest = lax.fori_loop(0, 17, halve, start)
        row = lax.iota(jnp.int32, len(weights)) if bounds is not None else 0
        return jnp.sum(at_least[row, lowest], dtype=jnp.int32)

    def narrow(i: jax.Array, floor: jax.Array) -> jax.Array:
        probe = floor | (1 << (30 - i))
        return jnp.where(reaching(probe) >= target, probe, floor)

    # The largest threshold that at least `target` reach, 0 if so many do not exist.
    threshold = lax.fori_loop(0, 31, narrow, jnp.int32(0))
    threshold = jnp.minimum(threshold, _bits(jnp.float32(PINNED)))  # of a target of 0
    utility = decode(codes)
    above, tied = jnp.zeros_like(owned), jnp.zeros_like(owned)
    for chunk, weight in enumerate(weights):
        bits = _bits(utility * jnp.float32(weight))
        is_candidate = (codes > 0) | (chunk < owned)
        if bounds is not None:
            is_candidate &= (bounds.first <= chunk) & (chunk < bounds.limit)
        above += is_candidate & (bits > threshold)
        tied += is_candidate & (bits == threshold)
    missing = target - jnp.sum(above, dtype=jnp.int32)
    # Of those that tie, the first `missing`.
    before = jnp.cumsum(tied) - tied
    chosen = above + jnp.clip(missing - before, 0, tied)
    return chosen, lax.bitcast_convert_type(threshold, jnp.float32)


def _count_at_least(
    codes: jax.Array, num_candidates: int, bounds: Bounds | None
) -> jax.Array:
    """Count candidates, `i32[K, 2^16 + 1]`: of each number, those of a code or higher.

    Without bounds all numbers have as many: one row stands for them.
    """
    at = codes.astype(jnp.int32)
    if bounds is None:
        counts = jnp.zeros((1, _NUM_CODES), jnp.int32).at[0, at].add(1)
    else:
        begins = jnp.zeros((num_candidates + 1, _NUM_CODES), jnp.int32)
        begins = begins.at[bounds.first, at].add(1)
        begins = begins.at[bounds.limit, at].add(-1)
        counts = jnp.cumsum(begins[:-1], axis=0)
    at_least = jnp.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    return jnp.pad(at_least, ((0, 0), (0, 1)))


def _bits(priority: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(priority, jnp.int32)
