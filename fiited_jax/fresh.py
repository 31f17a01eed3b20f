"""What a chunk starts from when it gets a frame: what it has read without one."""

from typing import Any

import jax
import jax.numpy as jnp

from .chunk_pool import initial_values, read_values
from .coarse import coarse_of_chunks
from .config import EmbeddingConfig
from .keys import Keys
from .precision import round_nearest
from .shared_pool import shared_frames
from .sparse_optim import SparseOptimizer
from .state import EmbeddingState, PageTable

__all__ = ["fresh_frames"]


def fresh_frames(
    state: EmbeddingState,
    pages: PageTable,
    entries: jax.Array,
    keys: Keys,
    tables: jax.Array,
    chunks: jax.Array,
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
) -> tuple[jax.Array, Any]:
    """Return what the frames of chunks start from.

    Args:
      state: whose shared pool and seed are read; where chunks have read zeros, initial
        values are drawn.
      pages: the page table, its entries written.
      entries: `i32[n]` in range.
      keys: words `u32[n]` that the entries track.
      tables: `i32[n]`.
      chunks: `i32[n]` chunk numbers.
      config: sizes and rules.
      optimizer: the store's optimizer.

    Returns:
      `f32[n, C]` values, rounded to what the pool holds, and slots with leading axis
      n: as the optimizer makes them, or of coarse values their own.
    """
    if state.shared is not None:
        frames = shared_frames(keys, tables, chunks, config)
        values = read_values(state.shared, frames, config.chunk_dim)
    else:
        values = initial_values(
            state.seed, keys, tables, chunks, config.chunk_dim, config.initial_scale
        )
    slots = optimizer.init(values)
    if pages.coarse is not None:
        is_coarse, coarse, coarse_slots = coarse_of_chunks(
            pages.coarse, entries, chunks, optimizer, config
        )
        values, slots = jax.tree.map(
            lambda own, drawn: jnp.where(is_coarse, own, drawn),
            (coarse, coarse_slots),
            (values, slots),
        )
    if config.stored_dtype != jnp.float32:
        values = round_nearest(values)
    return values, slots
