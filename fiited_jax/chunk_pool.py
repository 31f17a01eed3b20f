"""The chunk pool: fixed frames of values and optimizer state, and who gets them.

Every gather and scatter of the pool goes through `pallas_kernels`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import gather_chunks, scatter_chunks

from .config import pool_line_shape
from .keys import Keys, hash_words
from .sparse_optim import SparseOptimizer
from .state import NULL_FRAME, ChunkPool, FreeList

__all__ = [
    "init_free_list",
    "init_pool",
    "initial_values",
    "pop_frames",
    "push_frames",
    "read_frames",
    "refresh_owned",
    "update_frames",
    "write_fresh",
]


def init_pool(num_frames: int, chunk_dim: int, optimizer: SparseOptimizer) -> ChunkPool:
    """Allocate a pool of zeros with fresh optimizer state.

    Args:
      num_frames: P, the null frame included.
      chunk_dim: C, values per frame.
      optimizer: whose slots are allocated.

    Returns:
      A `ChunkPool`.
    """
    lines, lanes = pool_line_shape(num_frames, chunk_dim)
    values = jnp.zeros((lines, lanes), jnp.float32)
    # A copy: slots that are the parameters themselves must not share their buffer.
    slots = jax.tree.map(jnp.array, optimizer.init(values.reshape(-1, chunk_dim)))
    return ChunkPool(
        values=values,
        slots=jax.tree.map(
            lambda leaf: (
                leaf[:num_frames] if leaf.ndim == 1 else leaf.reshape(lines, lanes)
            ),
            slots,
        ),
    )


def init_free_list(num_frames: int) -> FreeList:
    """Return the list on which every frame but the null frame is free.

    Frame 1 is on top.

    >>> init_free_list(4).frames
    Array([3, 2, 1, 0], dtype=int32)
    """
    frames = jnp.arange(num_frames - 1, -1, -1, dtype=jnp.int32)
    return FreeList(frames=frames, count=jnp.int32(num_frames - 1))


def _running_count(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Position of each true element among the true ones, and how many there are."""
    flat = mask.reshape(-1).astype(jnp.int32)
    total = jnp.cumsum(flat)
    return (total - flat).reshape(mask.shape), jnp.sum(flat, dtype=jnp.int32)


def push_frames(free: FreeList, frames: jax.Array) -> FreeList:
    """Return frames to the free list, in the order given.

    Args:
      free: the free list.
      frames: `i32[...]` distinct frames; `NULL_FRAME` is passed over.

    Returns:
      The longer free list.
    """
    given = frames != NULL_FRAME
    position, num_given = _running_count(given)
    index = jnp.where(given, free.count + position, free.frames.size)
    stack = free.frames.at[index.reshape(-1)].set(frames.reshape(-1), mode="drop")
    return FreeList(frames=stack, count=free.count + num_given)


def pop_frames(free: FreeList, wanted: jax.Array) -> tuple[FreeList, jax.Array]:
    """Take frames off the free list, for as many as there are.

    Args:
      free: the free list.
      wanted: `bool[...]` who wants a frame; served in order.

    Returns:
      The shorter free list, and `i32[...]` the frames, `NULL_FRAME` where none was
      wanted or left.
    """
    position, num_wanted = _running_count(wanted)
    served = wanted & (position < free.count)
    index = jnp.where(served, free.count - 1 - position, 0)
    frames = jnp.where(served, free.frames[index], NULL_FRAME)
    taken = jnp.minimum(num_wanted, free.count)
    return FreeList(frames=free.frames, count=free.count - taken), frames


def initial_values(
    seed: jax.Array,
    keys: Keys,
    tables: jax.Array,
    chunks: jax.Array,
    chunk_dim: int,
    scale: float,
) -> jax.Array:
    """Draw the values a chunk starts from: a counter hash, no generator state.

    The same seed, key and chunk draw the same values at any time and on any device.

    Args:
      seed: `u32[2]`.
      keys: words `u32[n]`.
      tables: `i32[n]`.
      chunks: `i32[n]` chunk numbers within the vector.
      chunk_dim: C, values per chunk.
      scale: values are uniform in `[-scale, scale)`.

    Returns:
      `f32[n, C]`.
    """
    chunk_hash = hash_words(seed[0], seed[1], keys.low, keys.high, tables, chunks)
    columns = lax.iota(jnp.uint32, chunk_dim)
    bits = hash_words(chunk_hash[:, None], columns[None, :])
    unit = (bits >> 8).astype(jnp.float32) * 2.0**-23 - 1.0
    return unit * scale


def read_frames(
    pool: ChunkPool, frames: jax.Array, chunk_dim: int
) -> tuple[jax.Array, Any]:
    """Gather the values and slots of frames.

    Args:
      pool: the pool.
      frames: `i32[n]`.
      chunk_dim: C, values per frame.

    Returns:
      `f32[n, C]` values, and slots with leading axis n.
    """

    def read_slot(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 1:
            return gather_chunks(leaf, frames, 1)[:, 0]
        return gather_chunks(leaf, frames, chunk_dim)

    values = gather_chunks(pool.values, frames, chunk_dim)
    return values, jax.tree.map(read_slot, pool.slots)


def _write_frames(
    pool: ChunkPool, frames: jax.Array, values: jax.Array, slots: Any
) -> ChunkPool:
    """Overwrite distinct frames; `NULL_FRAME` is left alone."""

    def write_slot(leaf: jax.Array, new: jax.Array) -> jax.Array:
        return scatter_chunks(leaf, frames, new[:, None] if leaf.ndim == 1 else new)

    return ChunkPool(
        values=scatter_chunks(pool.values, frames, values),
        slots=jax.tree.map(write_slot, pool.slots, slots),
    )


def write_fresh(
    pool: ChunkPool, frames: jax.Array, values: jax.Array, optimizer: SparseOptimizer
) -> ChunkPool:
    """Hand frames out: initial values, and the optimizer state that goes with them.

    Args:
      pool: the pool.
      frames: `i32[n]` distinct; `NULL_FRAME` writes nothing.
      values: `f32[n, C]`.
      optimizer: the store's optimizer.

    Returns:
      The pool, updated.
    """
    return _write_frames(pool, frames, values, optimizer.init(values))


def update_frames(
    pool: ChunkPool,
    frames: jax.Array,
    grads: jax.Array,
    optimizer: SparseOptimizer,
    *,
    step: jax.Array | None = None,
) -> tuple[ChunkPool, jax.Array]:
    """Step frames along their gradients.

    Args:
      pool: the pool.
      frames: `i32[n]` distinct; `NULL_FRAME` is not stepped.
      grads: `f32[n, C]`, summed over duplicates.
      optimizer: the store's optimizer.
      step: `i32[]` updates before this one, for a learning rate that is a schedule.

    Returns:
      The pool, updated; and `bool[n]`, false for frames left as they were because
      their new values or slots are not finite: they could not learn any more.
    """
    values, slots = read_frames(pool, frames, grads.shape[-1])
    values, slots = optimizer.update(grads, slots, values, step=step)
    is_sound = jnp.all(jnp.isfinite(values), axis=-1)
    for slot in jax.tree.leaves(slots):
        is_sound &= jnp.all(jnp.isfinite(slot), axis=tuple(range(1, slot.ndim)))
    frames = jnp.where(is_sound, frames, NULL_FRAME)
    return _write_frames(pool, frames, values, slots), is_sound


def refresh_owned(
    pool: ChunkPool,
    is_new: jax.Array,
    values: jax.Array,
    optimizer: SparseOptimizer,
) -> ChunkPool:
    """Hand out frames chosen by a mask over the whole pool.

    Work and temporaries are of the order of the pool: for `prune_step` only.

    Args:
      pool: the pool.
      is_new: `bool[n]`, n the frames that the lines hold (at least P).
      values: `f32[n, C]` initial values; used where `is_new`.
      optimizer: the store's optimizer.

    Returns:
      The pool; frames where `is_new` are as `write_fresh` would leave them.
    """

    def choose(old: jax.Array, new: jax.Array) -> jax.Array:
        if old.ndim == 1:
            return jnp.where(is_new[: old.size], new[: old.size], old)
        mask = jnp.broadcast_to(is_new[:, None], new.shape)
        return jnp.where(mask.reshape(old.shape), new.reshape(old.shape), old)

    return ChunkPool(
        values=choose(pool.values, values),
        slots=jax.tree.map(choose, pool.slots, optimizer.init(values)),
    )
