"""The chunk pool: fixed frames of values and optimizer state.

Every gather and scatter of the pool goes through `pallas_kernels`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels import gather_chunks, update_chunks
from pallas_kernels.api import Implementation

from .keys import Keys, hash_words
from .precision import from_stored, round_nearest, round_stochastic, to_stored
from .sizes import num_scalars, pool_line_shape
from .sparse_optim import SparseOptimizer
from .state import ChunkPool
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
    line_group: int = 1,
) -> ChunkPool:
    """Allocate a pool of zeros with fresh optimizer state.

    Args:
      num_frames: P, the null frame included.
      chunk_dim: C, values per frame.
      optimizer: whose slots are allocated.
      dtype: how values are stored, see `fiited_jax.precision`.
      line_group: as for `pool_line_shape`.

    Returns:
      A `ChunkPool`.
    """
    lines, lanes = pool_line_shape(num_frames, chunk_dim, line_group)
    per_frame, scalars = lines * lanes // chunk_dim, num_scalars(num_frames)
    rows = jnp.zeros((max(per_frame, scalars), chunk_dim), jnp.float32)
    # A copy: slots that are the parameters themselves must not share their buffer.
    slots = jax.tree.map(jnp.array, optimizer.init(rows))
    return ChunkPool(
        values=jnp.zeros((lines, lanes), dtype),
        slots=jax.tree.map(
            lambda leaf: (
                leaf[:scalars]
                if leaf.ndim == 1
                else leaf[:per_frame].reshape(lines, lanes)
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


def read_values(
    pool: ChunkPool,
    frames: jax.Array,
    chunk_dim: int,
    kernels: Implementation | None = None,
) -> jax.Array:
    """Gather the values of frames `i32[...]`, `f32[..., C]`."""
    values = gather_chunks(pool.values, frames, chunk_dim, implementation=kernels)
    return from_stored(values)


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
    pool: ChunkPool,
    frames: jax.Array,
    values: jax.Array,
    slots: Any,
    kernels: Implementation | None = None,
) -> ChunkPool:
    """Overwrite frames.

    Args:
      pool: the pool.
      frames: `i32[n]` distinct; `NULL_FRAME` writes nothing.
      values: `f32[n, C]`, rounded to what the pool holds.
      slots: as `read_frames` returns them.
      kernels: as for `EmbeddingConfig`.

    Returns:
      The pool, updated.
    """
    leaves, structure = jax.tree.flatten(pool.slots)
    rows = [
        leaf[:, None] if leaf.ndim == 1 else leaf for leaf in jax.tree.leaves(slots)
    ]

    def overwrite(
        windows: tuple[jax.Array, ...], operands: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        new_values, *new_slots = operands
        is_written = jnp.ones((new_values.shape[0], 1), bool)
        return (to_stored(new_values, windows[0].dtype), *new_slots), is_written

    (new_values, *new_leaves), _ = update_chunks(
        (pool.values, *leaves),
        frames,
        (values, *rows),
        overwrite,
        (values.shape[1], *(row.shape[1] for row in rows)),
        implementation=kernels,
    )
    new_slots = jax.tree.unflatten(structure, new_leaves)
    return ChunkPool(values=new_values, slots=new_slots)


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
    kernels: Implementation | None = None,
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
      kernels: as for `EmbeddingConfig`.

    Returns:
      The pool, updated; and `bool[n]`, false for frames left as they were because
      their new values or slots are not finite: they could not learn any more.
    """
    chunk_dim, is_short = grads.shape[-1], is_rounded(pool)
    leaves, structure = jax.tree.flatten(pool.slots)
    is_scalar = [leaf.ndim == 1 for leaf in leaves]
    given = {"grads": grads}
    learning_rate = optimizer.learning_rate_at(step)
    if learning_rate is not None:
        given["learning_rate"] = learning_rate
    if scale is not None:
        given["scale"] = scale[:, None]
    if is_short:
        columns = lax.iota(jnp.int32, chunk_dim)[None, :]
        places = frames[:, None] * chunk_dim + columns
        # A pool of 16 bits comes from a store, which counts its steps.
        given["noise"] = rounding_salt(jnp.asarray(step), places, purpose)

    def update(
        windows: tuple[jax.Array, ...], operands: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        held = dict(zip(given, operands, strict=True))
        values, *slots = windows
        slots = [
            slot[:, 0] if is_one else slot
            for slot, is_one in zip(slots, is_scalar, strict=True)
        ]
        new_values, new_slots = optimizer.update(
            held["grads"],
            jax.tree.unflatten(structure, slots),
            from_stored(values),
            learning_rate=held.get("learning_rate"),
            scale=held["scale"][:, 0] if "scale" in held else None,
        )
        if is_short:
            new_values = round_stochastic(new_values, held["noise"])
        new = [
            leaf[:, None] if leaf.ndim == 1 else leaf
            for leaf in jax.tree.leaves(new_slots)
        ]
        return (to_stored(new_values, values.dtype), *new), _is_finite(new_values, *new)

    (values, *slots), is_sound = update_chunks(
        (pool.values, *leaves),
        frames,
        tuple(given.values()),
        update,
        (chunk_dim, *(1 if is_one else chunk_dim for is_one in is_scalar)),
        implementation=kernels,
    )
    slots = jax.tree.unflatten(structure, slots)
    return ChunkPool(values=values, slots=slots), is_sound


def _is_finite(*columns: jax.Array) -> jax.Array:
    """Tell of which rows everything is finite, `bool[n, 1]`."""
    # Not `jnp.all`, which Pallas does not lower for GPUs; and `isfinite` of 32 bits, as
    # Mosaic has none of 16.
    worst = [
        jnp.min(
            jnp.where(jnp.isfinite(column.astype(jnp.float32)), 1.0, 0.0),
            axis=-1,
            keepdims=True,
        )
        for column in columns
    ]
    return functools.reduce(jnp.minimum, worst) > 0
