"""The chunk pool: fixed frames of values and optimizer state.

Every gather and scatter of the pool goes through `pallas_kernels`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels import gather_chunks, scatter_chunks

from .keys import Keys, hash_words
from .precision import from_stored, round_nearest, round_stochastic, to_stored
from .sizes import pool_line_shape
from .sparse_optim import SparseOptimizer
from .state import NULL_FRAME, ChunkPool
from .utility import rounding_salt

__all__ = [
    "init_pool",
    "initial_values",
    "is_rounded",
    "read_frames",
    "read_values",
    "update_frames",
    "write_frames",
    "write_fresh",
]


def init_pool(
    num_frames: int,
    chunk_dim: int,
    optimizer: SparseOptimizer,
    dtype: DTypeLike = jnp.float32,
) -> ChunkPool:
    """Allocate a pool of zeros with fresh optimizer state.

    Args:
      num_frames: P, the null frame included.
      chunk_dim: C, values per frame.
      optimizer: whose slots are allocated.
      dtype: how values are stored, see `fiited_jax.precision`.

    Returns:
      A `ChunkPool`.
    """
    lines, lanes = pool_line_shape(num_frames, chunk_dim)
    values = jnp.zeros((lines, lanes), jnp.float32)
    # A copy: slots that are the parameters themselves must not share their buffer.
    slots = jax.tree.map(jnp.array, optimizer.init(values.reshape(-1, chunk_dim)))
    return ChunkPool(
        values=values.astype(dtype),
        slots=jax.tree.map(
            lambda leaf: (
                leaf[:num_frames] if leaf.ndim == 1 else leaf.reshape(lines, lanes)
            ),
            slots,
        ),
    )


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


def is_rounded(pool: ChunkPool) -> bool:
    """Tell whether the pool holds less than float32."""
    return pool.values.dtype != jnp.float32


def read_values(pool: ChunkPool, frames: jax.Array, chunk_dim: int) -> jax.Array:
    """Gather the values of frames `i32[...]`, `f32[..., C]`."""
    return from_stored(gather_chunks(pool.values, frames, chunk_dim))


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

    values = read_values(pool, frames, chunk_dim)
    return values, jax.tree.map(read_slot, pool.slots)


def write_frames(
    pool: ChunkPool, frames: jax.Array, values: jax.Array, slots: Any
) -> ChunkPool:
    """Overwrite frames.

    Args:
      pool: the pool.
      frames: `i32[n]` distinct; `NULL_FRAME` writes nothing.
      values: `f32[n, C]`, rounded to what the pool holds.
      slots: as `read_frames` returns them.

    Returns:
      The pool, updated.
    """

    def write_slot(leaf: jax.Array, new: jax.Array) -> jax.Array:
        return scatter_chunks(leaf, frames, new[:, None] if leaf.ndim == 1 else new)

    return ChunkPool(
        values=scatter_chunks(
            pool.values, frames, to_stored(values, pool.values.dtype)
        ),
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
    if is_rounded(pool):
        values = round_nearest(values)
    return write_frames(pool, frames, values, optimizer.init(values))


def update_frames(
    pool: ChunkPool,
    frames: jax.Array,
    grads: jax.Array,
    optimizer: SparseOptimizer,
    *,
    step: jax.Array | None = None,
    scale: jax.Array | None = None,
    purpose: int = 2,
) -> tuple[ChunkPool, jax.Array]:
    """Step frames along their gradients.

    Args:
      pool: the pool.
      frames: `i32[n]` distinct; `NULL_FRAME` is not stepped.
      grads: `f32[n, C]`, summed over duplicates.
      optimizer: the store's optimizer.
      step: `i32[]` updates before this one, for a learning rate that is a schedule.
      scale: `f32[n]` from the optimizer's `scale_of`, for a `table_scale`.
      purpose: for `rounding_salt`, another one for every pool of a store.

    Returns:
      The pool, updated; and `bool[n]`, false for frames left as they were because
      their new values or slots are not finite: they could not learn any more.
    """
    values, slots = read_frames(pool, frames, grads.shape[-1])
    values, slots = optimizer.update(grads, slots, values, step=step, scale=scale)
    if is_rounded(pool):
        chunk_dim = grads.shape[-1]
        columns = lax.iota(jnp.int32, chunk_dim)[None, :]
        places = frames[:, None] * chunk_dim + columns
        # A pool of 16 bits comes from a store, which counts its steps.
        noise = rounding_salt(jnp.asarray(step), places, purpose)
        values = round_stochastic(values, noise)
    is_sound = jnp.all(jnp.isfinite(values), axis=-1)
    for slot in jax.tree.leaves(slots):
        is_sound &= jnp.all(jnp.isfinite(slot), axis=tuple(range(1, slot.ndim)))
    frames = jnp.where(is_sound, frames, NULL_FRAME)
    return write_frames(pool, frames, values, slots), is_sound
