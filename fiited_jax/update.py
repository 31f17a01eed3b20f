"""The update: sum duplicates, step frames, score chunks."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import gather_chunks, gather_windows, scatter_windows

from .bidding import find_leaders
from .chunk_pool import update_frames
from .config import EmbeddingConfig
from .extent import frames_of_entries
from .handle import Handle
from .keys import Keys
from .page_table import owns
from .scorers import ScoreStats
from .shared_pool import fallback_frames
from .sparse_optim import SparseOptimizer
from .state import NO_ENTRY, NULL_FRAME, ChunkPool, EmbeddingState
from .utility import (
    accumulate,
    decode,
    encode,
    growth_factor,
    rounding_salt,
)

__all__ = ["ApplyInfo", "apply_gradients", "norms", "sum_duplicates"]


class ApplyInfo(NamedTuple):
    """What an update did; scalars.

    Attributes:
      updated: `i32[]` chunks whose own values were stepped.
      stale: `i32[]` lookups that were dropped because their entry has changed owner
        since the handle was made.
      non_finite: `i32[]` chunks left alone because the norm of their summed gradient,
        their new values or their new slots are not finite.
    """

    updated: jax.Array
    stale: jax.Array
    non_finite: jax.Array


def apply_gradients(
    state: EmbeddingState,
    handle: Handle,
    vector_grads: jax.Array,
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
) -> tuple[EmbeddingState, ApplyInfo]:
    """Step and score the chunks of a batch; see `EmbeddingStore.apply_gradients`."""
    pages, step = state.pages, state.step + 1
    num_lanes, num_chunks = handle.mask.size, config.num_chunks
    entries, tables = handle.entries.reshape(-1), handle.tables.reshape(-1)
    keys = Keys(*(jnp.reshape(word, -1) for word in handle.keys))

    # The handle may be older than the state: what changed owner is left alone.
    is_owned = owns(pages, entries, keys, tables)
    frames = frames_of_entries(pages, entries, config)

    # One lane per key, the leader, carries the sum of its duplicates.
    leaders = find_leaders(entries, is_owned)
    leads = leaders == jnp.arange(num_lanes)
    grads = jnp.reshape(vector_grads, (num_lanes, num_chunks, config.chunk_dim))
    summed = sum_duplicates(leaders, grads.astype(jnp.float32))
    is_finite = jnp.isfinite(norms(summed))
    steps = leads[:, None] & is_finite & (frames != NULL_FRAME)
    stepped = jnp.where(steps, frames, NULL_FRAME).reshape(-1)

    values = gather_chunks(state.pool.values, stepped, config.chunk_dim)
    pool, is_sound = update_frames(
        state.pool,
        stepped,
        summed.reshape(-1, config.chunk_dim),
        optimizer,
        step=state.step,
        scale=optimizer.scale_of(jnp.repeat(tables, num_chunks)),
    )
    is_spoilt = leads[:, None] & ~(is_finite & is_sound.reshape(steps.shape))

    # A row of statistics per utility: of a chunk, or of the whole vector.
    rows = (num_lanes, config.num_utilities)
    parts = (*rows, config.embedding_dim // config.num_utilities)
    stats = ScoreStats(
        count=sum_duplicates(leaders, jnp.ones(rows, jnp.float32)),
        grad_norm=norms(summed.reshape(parts)),
        sum_of_norms=sum_duplicates(
            leaders, norms(grads.astype(jnp.float32).reshape(parts))
        ),
        value_dot_grad=jnp.sum(
            (values.reshape(summed.shape) * summed).reshape(parts), axis=-1
        ),
        table=jnp.broadcast_to(tables[:, None], rows),
    )
    per_row = (*rows, num_chunks // config.num_utilities)
    scores = leads[:, None] & ~jnp.any(is_spoilt.reshape(per_row), axis=-1)
    scored = jnp.where(leads, entries, NO_ENTRY)
    codes = gather_windows(pages.utility, scored, config.num_utilities)
    growth = growth_factor(step - state.decayed_at, config.half_life)
    utility = accumulate(decode(codes), _score(config, stats), growth)
    number = lax.broadcasted_iota(jnp.int32, rows, 1)
    salt = rounding_salt(step, scored[:, None] * config.num_utilities + number)
    codes = jnp.where(scores, encode(utility, salt), codes)
    new_pages = dataclasses.replace(
        pages, utility=scatter_windows(pages.utility, scored, codes)
    )
    is_stale = (entries != NO_ENTRY) & ~is_owned
    shared, num_spoilt = state.shared, jnp.sum(is_spoilt)
    if shared is not None:
        frames = fallback_frames(handle, frames.reshape(*handle.mask.shape, -1), config)
        frames = jnp.where(
            is_stale[:, None], NULL_FRAME, frames.reshape(grads.shape[:2])
        )
        shared, num_more = _step_shared(shared, frames, grads, state.step, optimizer)
        num_spoilt += num_more
    info = ApplyInfo(
        updated=jnp.sum(steps & ~is_spoilt),
        stale=jnp.sum(is_stale),
        non_finite=num_spoilt,
    )
    new_state = dataclasses.replace(
        state, step=step, pages=new_pages, pool=pool, shared=shared
    )
    return new_state, info


def _step_shared(
    shared: ChunkPool,
    frames: jax.Array,
    grads: jax.Array,
    step: jax.Array,
    optimizer: SparseOptimizer,
) -> tuple[ChunkPool, jax.Array]:
    """Step the shared vectors from which lanes have read.

    Args:
      shared: the shared pool.
      frames: `i32[N, K]` from `fallback_frames`.
      grads: `[N, K, C]`.
      step: `i32[]` updates before this one.
      optimizer: the store's optimizer.

    Returns:
      The pool, updated; and `i32[]` how many chunks were left alone.
    """
    is_read = frames != NULL_FRAME
    num_lanes, num_chunks, chunk_dim = grads.shape
    vector = (jnp.max(frames, axis=1) - 1) // num_chunks
    leaders = find_leaders(vector, jnp.any(is_read, axis=1))
    terms = jnp.where(is_read[..., None], grads.astype(jnp.float32), 0.0)
    summed = sum_duplicates(leaders, terms)
    # The leader's lane stands for all chunks that any lane of its vector has read.
    targets = jnp.full((num_lanes, num_chunks), NULL_FRAME, jnp.int32)
    targets = targets.at[leaders].max(frames, mode="drop")
    is_finite = jnp.isfinite(norms(summed))
    pool, is_sound = update_frames(
        shared,
        jnp.where(is_finite, targets, NULL_FRAME).reshape(-1),
        summed.reshape(-1, chunk_dim),
        optimizer,
        step=step,
    )
    is_sound = is_finite & is_sound.reshape(targets.shape)
    return pool, jnp.sum((targets != NULL_FRAME) & ~is_sound)


def sum_duplicates(leaders: jax.Array, terms: jax.Array) -> jax.Array:
    """Sum the terms of duplicates into their leader's row.

    Args:
      leaders: `i32[N]` from `bidding.find_leaders`.
      terms: `f32[N, ...]`.

    Returns:
      `f32[N, ...]` the sums, zeros in rows that lead nothing.
    """
    return jnp.zeros_like(terms).at[leaders].add(terms, mode="drop")


def norms(vectors: jax.Array) -> jax.Array:
    """Return the L2 norms over the last axis."""
    return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1))


def _score(config: EmbeddingConfig, stats: ScoreStats) -> jax.Array:
    score = jnp.asarray(config.scorer(stats))
    if score.shape != stats.count.shape:
        raise ValueError(
            "scorer must return one score per row of its statistics, shape "
            f"{stats.count.shape}; got {score.shape}"
        )
    return score.astype(jnp.float32)
