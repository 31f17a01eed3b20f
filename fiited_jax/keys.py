"""Ids as two 32-bit words, and the hash that places them.

JAX runs without int64, so a 64-bit id travels as two `uint32` arrays. A key is an id
plus a table number; its words are stored as they are and only mixed to choose a
bucket or to draw initial values, so two keys never share an entry.
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "PADDING_KEY",
    "Keys",
    "canonicalize_ids",
    "canonicalize_tables",
    "hash_words",
    "keys_from_int64",
]

_ALL_ONES = np.uint32(0xFFFFFFFF)


class Keys(NamedTuple):
    """Ids of 64 bits as two words.

    Attributes:
      low: `u32[...]` the low word; a NumPy array will do.
      high: `u32[...]` the high word, the same shape.
    """

    low: jax.Array
    high: jax.Array


# The int64 -1.
PADDING_KEY = Keys(cast(jax.Array, _ALL_ONES), cast(jax.Array, _ALL_ONES))


def keys_from_int64(ids: np.ndarray) -> Keys:
    """Split 64-bit ids into two words, on the host.

    Args:
      ids: `int64[...]` or `uint64[...]` NumPy array. -1 (2^64 - 1 unsigned) becomes
        `PADDING_KEY`; every other value, negative too, is an id.

    Returns:
      `Keys` of NumPy `uint32[...]`.

    Raises:
      TypeError: if `ids` is not a 64-bit integer array.

    >>> keys_from_int64(np.array([7, 1 << 32], np.int64)).high
    array([0, 1], dtype=uint32)
    """
    ids = np.asarray(ids)
    if ids.dtype not in (np.int64, np.uint64):
        raise TypeError(f"ids must be int64 or uint64, got {ids.dtype}")
    bits = ids.astype(np.uint64)
    low = (bits & np.uint64(_ALL_ONES)).astype(np.uint32)
    high = (bits >> np.uint64(32)).astype(np.uint32)
    return Keys(cast(jax.Array, low), cast(jax.Array, high))


def canonicalize_ids(ids: jax.Array | np.ndarray | Keys) -> tuple[Keys, jax.Array]:
    """Bring ids of any accepted form to words, and tell which are not padding.

    Args:
      ids: `i32[...]` (negative is padding), `u32[...]` (no padding) or `Keys`
        (`PADDING_KEY` is padding).

    Returns:
      `Keys` of `u32[...]`, and `bool[...]`, true where there is an id.

    Raises:
      TypeError: on any other dtype; 64-bit arrays are told of `keys_from_int64`.
      ValueError: if the words of `Keys` differ in shape.
    """
    if isinstance(ids, Keys):
        for name, word in zip(Keys._fields, ids, strict=True):
            if getattr(word, "dtype", None) != np.uint32:
                raise TypeError(
                    f"ids.{name} must be uint32, got "
                    f"{getattr(word, 'dtype', type(word).__name__)}"
                )
        low, high = jnp.asarray(ids.low), jnp.asarray(ids.high)
        if low.shape != high.shape:
            raise ValueError(
                f"ids.low and ids.high must have one shape, got {low.shape} "
                f"and {high.shape}"
            )
        return Keys(low, high), ~((low == _ALL_ONES) & (high == _ALL_ONES))
    dtype = getattr(ids, "dtype", None)
    if dtype in (np.int64, np.uint64):
        raise TypeError(
            f"ids must be int32, uint32 or fj.Keys, got {dtype}; convert with "
            "fj.keys_from_int64(ids), or ids.astype('int32') if they fit"
        )
    if dtype not in (np.int32, np.uint32):
        raise TypeError(
            "ids must be an int32 or uint32 array or fj.Keys, got "
            f"{dtype if dtype is not None else type(ids).__name__}"
        )
    low = jnp.asarray(ids)
    valid = low >= 0 if dtype == np.int32 else jnp.ones(low.shape, bool)
    low = low.astype(jnp.uint32)
    return Keys(low, jnp.zeros_like(low)), valid


def canonicalize_tables(
    tables: jax.Array | np.ndarray | int, shape: tuple[int, ...], num_tables: int
) -> tuple[jax.Array, jax.Array]:
    """Broadcast table numbers to the ids they go with.

    Args:
      tables: integer or integer array that broadcasts against `shape`.
      shape: the shape of the ids.
      num_tables: how many tables there are.

    Returns:
      `i32[shape]`, and `bool[shape]`, true where the number is in range; elsewhere
      the table is -1.

    Raises:
      TypeError: if `tables` is not of integers.
      ValueError: if it does not broadcast, or a plain `int` is out of range.
    """
    if not isinstance(tables, int | np.integer | np.ndarray | jax.Array):
        raise TypeError(
            f"tables must be an integer or an integer array, got {tables!r}"
        )
    if isinstance(tables, int | np.integer) and not 0 <= tables < num_tables:
        raise ValueError(f"tables must be in [0, {num_tables}), got {tables}")
    array = tables if isinstance(tables, jax.Array) else np.asarray(tables)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"tables must be integers, got {array.dtype}")
    # Checked before a wide integer is cut to 32 bits: it must not become another table.
    in_range = (array >= 0) & (array < num_tables)
    known = (jnp if isinstance(array, jax.Array) else np).where(in_range, array, -1)
    try:
        wide = jnp.broadcast_to(jnp.asarray(known.astype(np.int32)), shape)
    except ValueError as error:
        raise ValueError(
            f"tables must broadcast to the shape of ids {shape}, got {array.shape}"
        ) from error
    return wide, wide >= 0


def hash_words(*words: jax.Array) -> jax.Array:
    """Mix words into one: a chain of murmur3 finalizers, each a bijection.

    Args:
      *words: `u32[...]` or `i32[...]` arrays that broadcast together.

    Returns:
      `u32[...]`.
    """
    mixed = jnp.uint32(0x9E3779B9)
    for word in words:
        mixed = _finalize((mixed ^ word.astype(jnp.uint32)) + jnp.uint32(0x9E3779B9))
    return mixed


def _finalize(word: jax.Array) -> jax.Array:
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
