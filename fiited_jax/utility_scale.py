"""Utilities of several tables on one scale: over the 95th percentile of their table."""

import jax
import jax.numpy as jnp

from .utility import MAX_UTILITY, PINNED, SMALLEST, decode, encode

__all__ = ["scale_by_p95"]

_DIGIT_BITS = 8  # a code is two digits
_DIGITS = 1 << _DIGIT_BITS


def scale_by_p95(codes: jax.Array, tables: jax.Array, num_tables: int) -> jax.Array:
    """Divide utilities by the 95th percentile of those above 0 of their table.

    The percentile is the lowest utility that at least 95 % of them do not exceed. What
    is 0 or pinned is not counted and stays what it is, as does a table without others.
    Within a table the order stays; what rounding down to a code makes equal is a tie.

    Args:
      codes: `u16[n]` from `encode`.
      tables: `i32[n]` below `num_tables`, -1 for none.
      num_tables: T; T * 2^8 words are needed beside the utilities.

    Returns:
      `u16[n]` codes.

    References:
      Lai et al., "AdaEmbed: adaptive embedding for large-scale recommendation models",
      OSDI 2023. Deviation: exact, of all and not of a sample.

    >>> codes = encode(jnp.float32([1.0, 8.0, 0.5, 0.25]), jnp.uint32(0))
    >>> decode(scale_by_p95(codes, jnp.array([0, 0, 1, 1]), 2))
    Array([0.125, 1.   , 1.   , 0.5  ], dtype=float32)
    """
    utility = decode(codes)
    counts = (utility > 0) & (utility < PINNED) & (tables >= 0)
    unit = decode(_p95_codes(codes, jnp.where(counts, tables, num_tables), num_tables))
    unit = jnp.maximum(unit, SMALLEST)  # of a table where none counts
    # No candidate of the ranking is lost, and none becomes a pinned one.
    scaled = utility / unit[jnp.maximum(tables, 0)]
    scaled = jnp.clip(scaled, SMALLEST, MAX_UTILITY)
    return jnp.where(counts, encode(scaled, jnp.uint32(0)), codes)


def _p95_codes(codes: jax.Array, tables: jax.Array, num_tables: int) -> jax.Array:
    """Find the 95th percentile of each table, `u16[T]`, digit by digit.

    Args:
      codes: `u16[n]`.
      tables: `i32[n]`, `num_tables` for codes that do not count.
      num_tables: T.

    Returns:
      The codes; of a table without any, one that means nothing.
    """

    def find_digit(
        digits: jax.Array, tables: jax.Array, rank: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Find the digit of each table's code of a rank, and its rank among those."""
        counts = jnp.zeros((num_tables, _DIGITS), jnp.int32)
        counts = counts.at[tables, digits].add(1, mode="drop")
        upto = jnp.cumsum(counts, axis=1)
        is_below = upto < rank[:, None]
        below = jnp.max(jnp.where(is_below, upto, 0), axis=1)
        return jnp.sum(is_below, axis=1, dtype=jnp.int32), rank - below

    sizes = jnp.zeros(num_tables, jnp.int32).at[tables].add(1, mode="drop")
    rank = sizes - sizes // 20  # 95 %, rounded up
    high = (codes >> _DIGIT_BITS).astype(jnp.int32)
    low = (codes & (_DIGITS - 1)).astype(jnp.int32)
    first, rank = find_digit(high, tables, rank)
    is_near = high == first.at[tables].get(mode="clip")
    last, _ = find_digit(low, jnp.where(is_near, tables, num_tables), rank)
    return (first << _DIGIT_BITS | last).astype(jnp.uint16)
