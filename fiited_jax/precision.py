"""Precision: how values of 16 bits are stored, read and rounded.

A pool of bfloat16 is an array of `uint16` that holds their bits: XLA:CPU converts an
array of bfloat16 as a whole to float32 to scatter into it. Everything is worked out in
float32; only what is stored is rounded.
"""

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["from_stored", "round_nearest", "round_stochastic", "to_stored"]

_DROPPED_BITS = 16
_MAX = float(jnp.finfo(jnp.bfloat16).max)


def from_stored(stored: jax.Array) -> jax.Array:
    """Return stored values, `f32[...]` or bits `u16[...]`, as `f32[...]`; exact."""
    if stored.dtype != jnp.uint16:
        return stored
    return _of_bits(stored.astype(jnp.uint32) << _DROPPED_BITS)


def to_stored(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return rounded values `f32[...]` as an array of `dtype` holds them; exact.

    That is as they are, or with `uint16` as the bits of bfloat16.

    >>> from_stored(to_stored(jnp.float32([0.5, -3.0]), jnp.dtype("uint16")))
    Array([ 0.5, -3. ], dtype=float32)
    """
    if dtype != jnp.uint16:
        return values.astype(dtype)
    return (_bits_of(values) >> _DROPPED_BITS).astype(jnp.uint16)


def round_nearest(values: jax.Array) -> jax.Array:
    """Round to the nearest bfloat16, ties to even; what is finite stays so.

    Args:
      values: `f32[...]`.

    Returns:
      `f32[...]`.
    """
    rounded = lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    return jnp.where(jnp.isfinite(values), jnp.clip(rounded, -_MAX, _MAX), values)


def round_stochastic(values: jax.Array, noise: jax.Array) -> jax.Array:
    """Round to a neighbouring bfloat16, up as often as the value is near to it.

    So steps far smaller than the distance of two neighbours add up to what they should.

    Args:
      values: `f32[...]`; what is not finite stays so.
      noise: `u32[...]` hashes, of which the high bits count.

    Returns:
      `f32[...]`; infinite where the next bfloat16 is.

    >>> round_stochastic(jnp.float32([1.0]), jnp.uint32([2**32 - 1]))
    Array([1.], dtype=float32)
    """
    bits = _bits_of(values) + (noise >> _DROPPED_BITS)
    rounded = _of_bits(bits >> _DROPPED_BITS << _DROPPED_BITS)
    return jnp.where(jnp.isfinite(values), rounded, values)


def _bits_of(values: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(values, jnp.uint32)


def _of_bits(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)
