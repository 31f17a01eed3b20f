"""The doorkeeper: which keys have come before, in a byte per slot.

Most ids of a click stream occur once and would only push others out. A slot remembers
the last unknown key that came; one that finds itself remembered is known. Slots are
overwritten, so what is remembered is recent, and nothing has to be cleared.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import gather_windows

from .keys import Keys, hash_words

__all__ = ["recognize", "slots_and_tags"]

_SALT = 0x5EED  # apart from the hash that chooses buckets


def slots_and_tags(
    keys: Keys, tables: jax.Array, num_slots: int
) -> tuple[jax.Array, jax.Array]:
    """Return where keys are remembered, `i32[N]`, and as what, `u8[N]`, not 0."""
    mixed = hash_words(keys.low, keys.high, tables, jnp.uint32(_SALT))
    slots = (mixed % jnp.uint32(num_slots)).astype(jnp.int32)
    tags = hash_words(mixed) >> 24
    return slots, jnp.maximum(tags, 1).astype(jnp.uint8)


def recognize(
    memory: jax.Array, keys: Keys, tables: jax.Array, asking: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Tell which keys have come in an earlier batch, and remember the others.

    Of several unknown keys of one slot, the one of the highest tag is remembered.
    Another key of the same slot is taken for a remembered one once in 255 times.

    Args:
      memory: `u8[S]`, 0 where nothing is remembered.
      keys: words `u32[N]`.
      tables: `i32[N]`.
      asking: `bool[N]` the lanes that take part.

    Returns:
      The memory, updated; and `bool[N]`, true for lanes whose key is known.

    >>> keys = Keys(jnp.array([7, 8], jnp.uint32), jnp.zeros(2, jnp.uint32))
    >>> memory, tables = jnp.zeros(64, jnp.uint8), jnp.zeros(2, jnp.int32)
    >>> memory, known = recognize(memory, keys, tables, jnp.array([True, False]))
    >>> recognize(memory, keys, tables, jnp.array([True, True]))[1]
    Array([ True, False], dtype=bool)
    """
    slots, tags = slots_and_tags(keys, tables, memory.size)
    is_known = asking & (gather_windows(memory, slots, 1)[:, 0] == tags)
    slots = jnp.where(asking & ~is_known, slots, memory.size)
    # Two writes whose result does not depend on the order of lanes.
    memory = memory.at[slots].set(jnp.uint8(0), mode="drop")
    return memory.at[slots].max(tags, mode="drop"), is_known
