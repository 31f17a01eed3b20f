"""The prune step: rank all tracked chunks and move frames from losers to winners."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .chunk_pool import initial_values, pop_frames, push_frames, refresh_owned
from .config import EmbeddingConfig
from .keys import Keys
from .sparse_optim import SparseOptimizer
from .state import EMPTY_TABLE, NULL_FRAME, ChunkPool, EmbeddingState
from .utility import decay, select_top

__all__ = ["PruneInfo", "prune_step"]

_NO_OWNER = -1


class PruneInfo(NamedTuple):
    """What a prune step did; scalars.

    Attributes:
      threshold: `f32[]` the utility that all chosen chunks reach, moved or not.
      freed: `i32[]` chunks that lost their frame.
      granted: `i32[]` chunks that got one.
      moved_share: `f32[]` the larger of both, as asked for, over the target.
      moved: `bool[]` false if everything stayed in place, by hysteresis or because
        nothing had to move.
      frames_used: `i32[]` frames owned by chunks afterwards.
    """

    threshold: jax.Array
    freed: jax.Array
    granted: jax.Array
    moved_share: jax.Array
    moved: jax.Array
    frames_used: jax.Array


def prune_step(
    state: EmbeddingState, config: EmbeddingConfig, optimizer: SparseOptimizer
) -> tuple[EmbeddingState, PruneInfo]:
    """Give the frames to the chunks of highest utility; see `EmbeddingStore`."""
    pages = state.pages
    tracked = jnp.repeat(pages.table != EMPTY_TABLE, config.num_chunks)
    age = jnp.repeat(state.step - pages.last_step, config.num_chunks)
    utility = decay(pages.utility, age, config.half_life)
    owned = pages.frames != NULL_FRAME
    # A chunk of no utility may keep a spare frame but is never given one.
    candidate = tracked & (owned | (utility > 0))
    chosen, threshold = select_top(utility, candidate, config.target_frames)
    losers, winners = owned & ~chosen, chosen & ~owned
    asked = jnp.maximum(jnp.sum(losers), jnp.sum(winners))
    moved_share = asked.astype(jnp.float32) / config.target_frames
    # Masks and no `lax.cond`: a branch over the state would copy the state.
    moves = moved_share >= config.hysteresis
    losers, winners = losers & moves, winners & moves

    free = push_frames(state.free, jnp.where(losers, pages.frames, NULL_FRAME))
    free, granted = pop_frames(free, winners)
    frames = jnp.where(losers, NULL_FRAME, jnp.where(winners, granted, pages.frames))
    new_state = dataclasses.replace(
        state,
        pages=dataclasses.replace(pages, frames=frames),
        pool=_refresh(state, granted, config, optimizer),
        free=free,
    )
    num_freed, num_granted = jnp.sum(losers), jnp.sum(winners)
    info = PruneInfo(
        threshold=threshold,
        freed=num_freed,
        granted=num_granted,
        moved_share=moved_share,
        moved=num_freed + num_granted > 0,
        frames_used=config.num_frames - 1 - free.count,
    )
    return new_state, info


def _refresh(
    state: EmbeddingState,
    granted: jax.Array,
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
) -> ChunkPool:
    """Make granted frames as fresh; `granted` is `i32[M * K]`, mostly `NULL_FRAME`.

    The few winners are found from the frames' side: windows of values for every
    chunk of the page table would be many times the pool.
    """
    num_frames = state.pool.values.size // config.chunk_dim
    at = jnp.where(granted == NULL_FRAME, num_frames, granted)
    chunks = lax.iota(jnp.int32, granted.size)
    owners = jnp.full(num_frames, _NO_OWNER, jnp.int32).at[at].set(chunks, mode="drop")
    entries = jnp.maximum(owners, 0) // config.num_chunks
    values = initial_values(
        state.seed,
        Keys(state.pages.key_low[entries], state.pages.key_high[entries]),
        state.pages.table[entries],
        jnp.maximum(owners, 0) % config.num_chunks,
        config.chunk_dim,
        config.initial_scale,
    )
    return refresh_owned(state.pool, owners != _NO_OWNER, values, optimizer)
