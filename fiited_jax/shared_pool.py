"""The shared pool: what chunks without a frame read with `fallback="shared"`.

A few whole vectors, trained like the others. A key is hashed to one of them, whether it
is tracked or not, and reads there what it has no frame for.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .chunk_pool import init_pool, initial_values, write_fresh
from .config import EmbeddingConfig
from .handle import Handle
from .keys import Keys, hash_words
from .sparse_optim import SparseOptimizer
from .state import NULL_FRAME, ChunkPool
from .table_rules import allowed_chunks

__all__ = ["fallback_frames", "init_shared", "shared_frames"]

_SALT = 0x5A4ED  # apart from the hashes that choose buckets and slots of the filter


def init_shared(
    seed: jax.Array, config: EmbeddingConfig, optimizer: SparseOptimizer
) -> ChunkPool | None:
    """Allocate the shared vectors with initial values; `None` for no such vectors."""
    if not config.num_shared:
        return None
    num_frames = config.num_shared * config.num_chunks
    pool = init_pool(
        num_frames + 1,
        config.chunk_dim,
        optimizer,
        config.stored_dtype,
        config.line_group,
    )
    frames = 1 + lax.iota(jnp.int32, num_frames)
    nothing = jnp.zeros_like(frames)
    values = initial_values(
        seed,
        Keys(frames.astype(jnp.uint32), jnp.zeros_like(frames, jnp.uint32)),
        nothing - 1,  # of no table
        nothing,
        config.chunk_dim,
        config.initial_scale,
    )
    return write_fresh(pool, frames, values, optimizer)


def shared_frames(
    keys: Keys, tables: jax.Array, chunks: jax.Array, config: EmbeddingConfig
) -> jax.Array:
    """Return the frames of the shared pool that keys read.

    Args:
      keys: words `u32[...]`.
      tables: `i32[...]`; of -1, no table, the frame is `NULL_FRAME`.
      chunks: `i32[...]` chunk numbers.
      config: sizes and rules.

    Returns:
      `i32[...]`.
    """
    mixed = hash_words(keys.low, keys.high, tables, jnp.uint32(_SALT))
    row = (mixed % jnp.uint32(config.num_shared)).astype(jnp.int32)
    frame = 1 + row * config.num_chunks + chunks
    return jnp.where(tables >= 0, frame, NULL_FRAME)


def fallback_frames(
    handle: Handle, frames: jax.Array, config: EmbeddingConfig
) -> jax.Array:
    """Return the frames of the shared pool that stand in for absent chunks.

    Args:
      handle: of the batch.
      frames: `i32[..., K]` the chunks' own frames.
      config: sizes and rules.

    Returns:
      `i32[..., K]`, `NULL_FRAME` for chunks that have their own frame or are beyond the
      table's dimension, and for padding and tables out of range.
    """
    keys = Keys(*(word[..., None] for word in handle.keys))
    chunks = lax.broadcasted_iota(jnp.int32, frames.shape, frames.ndim - 1)
    shared = shared_frames(keys, handle.tables[..., None], chunks, config)
    is_allowed = chunks < allowed_chunks(handle.tables, config)[..., None]
    stands_in = (frames == NULL_FRAME) & handle.mask[..., None] & is_allowed
    return jnp.where(stands_in, shared, NULL_FRAME)
