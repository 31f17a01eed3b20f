"""Relocation: runs of frames grow, shrink and close ranks, in place.

Runs keep their order in the pool, so the frames that stay move in two sweeps: first
down, to the lowest frames, then up, to where their runs begin now. A sweep reads a
block before it writes one, in the direction in which nothing is overwritten unread:
beside the pool it needs one block of values and slots, and a few words per frame.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .chunk_pool import read_frames, write_frames
from .config import EmbeddingConfig
from .extent import chunk_at_rank, frame_of, num_present
from .fresh import fresh_frames
from .page_table import read_keys
from .sparse_optim import SparseOptimizer
from .state import NULL_FRAME, ChunkPool, EmbeddingState, PageTable

__all__ = ["Layout", "plan_layout", "relocate"]

_BLOCK_VALUES = 1 << 19  # values per block of a sweep: 2 MiB


class Layout(NamedTuple):
    """Where runs shall lie, and what comes from where.

    Attributes:
      start: `i32[M]` first frames of the new runs, `NULL_FRAME` for none.
      next_frame: `i32[]` the frame after the last one in use.
      num_kept: `i32[]` frames that keep their owner.
      old_frame: `i32[P]` for the i-th frame that is kept, counted from 1, where it is
        now.
      kept_as: `i32[P]` for a frame of the new layout, which kept frame it is;
        `NULL_FRAME` if it is fresh.
      owner: `i32[P]` the entry of a frame of the new layout.
      chunk: `i32[P]` which of its chunks.
    """

    start: jax.Array
    next_frame: jax.Array
    num_kept: jax.Array
    old_frame: jax.Array
    kept_as: jax.Array
    owner: jax.Array
    chunk: jax.Array


def plan_layout(pages: PageTable, extent: jax.Array, config: EmbeddingConfig) -> Layout:
    """Lay the runs of new extents out without gaps.

    Args:
      pages: the page table, with the old extents.
      extent: `[M]` which chunks shall have a frame.
      config: sizes and rules; all of them fit its frames.

    Returns:
      A `Layout`. Runs stay in the order of their frames; those that are new follow in
      the order of their entries.
    """
    num_frames = config.num_frames
    frames = lax.iota(jnp.int32, num_frames)
    entries = lax.iota(jnp.int32, pages.start.size)
    length = num_present(extent, config)
    old_start = pages.start.astype(jnp.int32)
    has_run = old_start != NULL_FRAME
    at = jnp.where(has_run, old_start, num_frames)
    room = jnp.zeros(num_frames, jnp.int32).at[at].set(length, mode="drop")
    upto = jnp.cumsum(room)
    before_run = (upto - room)[old_start]
    added = jnp.where(has_run, 0, length)
    before_new = upto[-1] + jnp.cumsum(added) - added
    start = 1 + jnp.where(has_run, before_run, before_new)
    start = jnp.where(length > 0, start, NULL_FRAME)
    next_frame = 1 + jnp.sum(length, dtype=jnp.int32)

    at = jnp.where(length > 0, start, num_frames)
    begins = jnp.full(num_frames, NULL_FRAME, jnp.int32).at[at].set(at, mode="drop")
    entry_at = jnp.zeros(num_frames, jnp.int32).at[at].set(entries, mode="drop")
    run_start = lax.cummax(begins)
    owner = entry_at[run_start]
    chunk = chunk_at_rank(extent[owner], frames - run_start, config)
    source = frame_of(old_start[owner], pages.extent[owner], chunk, config)
    is_kept = (frames > NULL_FRAME) & (frames < next_frame) & (source != NULL_FRAME)
    number = jnp.cumsum(is_kept.astype(jnp.int32))
    at = jnp.where(is_kept, number, num_frames)
    return Layout(
        start=start,
        next_frame=next_frame,
        num_kept=number[-1],
        old_frame=frames.at[at].set(source, mode="drop"),
        kept_as=jnp.where(is_kept, number, NULL_FRAME),
        owner=owner,
        chunk=chunk,
    )


def relocate(
    state: EmbeddingState,
    layout: Layout,
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
    moves: jax.Array,
) -> ChunkPool:
    """Bring the pool of a state into a layout; fresh frames are as `admit` makes them.

    Args:
      state: the state, its page table as it was.
      layout: from `plan_layout`.
      config: sizes and rules.
      optimizer: the store's optimizer.
      moves: `bool[]`; if false, nothing is done, and no time is taken.

    Returns:
      The pool, updated.
    """
    chunk_dim = config.chunk_dim

    def close_ranks(pool: ChunkPool, frames: jax.Array) -> tuple[jax.Array, Any]:
        return read_frames(pool, layout.old_frame[frames], chunk_dim)

    def spread(pool: ChunkPool, frames: jax.Array) -> tuple[jax.Array, Any]:
        kept_as = layout.kept_as[frames]
        values, slots = read_frames(pool, kept_as, chunk_dim)
        pages, owners = state.pages, layout.owner[frames]
        keys, tables = read_keys(pages, owners)
        chunks = layout.chunk[frames]
        fresh = fresh_frames(
            state, pages, owners, keys, tables, chunks, config, optimizer
        )
        is_fresh = kept_as == NULL_FRAME

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            mask = is_fresh.reshape(-1, *(1,) * (old.ndim - 1))
            return jnp.where(mask, new, old)

        return jax.tree.map(choose, fresh, (values, slots))

    # Bounds instead of `lax.cond`: a branch over the pool would copy the pool.
    block = min(max(_BLOCK_VALUES // chunk_dim, 1), config.num_frames)
    num_kept = jnp.where(moves, layout.num_kept, 0)
    num_used = jnp.where(moves, layout.next_frame - 1, 0)
    pool = _sweep(state.pool, num_kept, block, close_ranks, upwards=True)
    return _sweep(pool, num_used, block, spread, upwards=False)


def _sweep(
    pool: ChunkPool,
    count: jax.Array,
    block: int,
    content: Callable[[ChunkPool, jax.Array], tuple[jax.Array, Any]],
    *,
    upwards: bool,
) -> ChunkPool:
    """Write frames 1 to `count`, a block at a time, with what `content` says."""
    num_blocks = (count + block - 1) // block

    def write_block(index: jax.Array, pool: ChunkPool) -> ChunkPool:
        if not upwards:
            index = num_blocks - 1 - index
        frames = 1 + index * block + lax.iota(jnp.int32, block)
        frames = jnp.where(frames <= count, frames, NULL_FRAME)
        return write_frames(pool, frames, *content(pool, frames))

    return lax.fori_loop(0, num_blocks, write_block, pool)
