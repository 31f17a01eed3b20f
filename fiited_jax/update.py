"""The update: sum duplicates, step frames, score chunks."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import (
    exchange_windows,
    gather_chunks,
    gather_windows,
    scatter_windows,
)

from .bidding import find_leaders
from .chunk_pool import update_frames
from .config import EmbeddingConfig
from .handle import Handle
from .keys import Keys
from .page_table import owns
from .scorers import ScoreStats
from .sparse_optim import SparseOptimizer
from .state import NO_ENTRY, NULL_FRAME, EmbeddingState
from .utility import accumulate, decay

__all__ = ["ApplyInfo", "apply_gradients", "sum_duplicates"]


class ApplyInfo(NamedTuple):
    """What an update did; scalars.

    Attributes:
      updated: `i32[]` chunks whose values were stepped.
      stale: `i32[]` lookups of which something was dropped because their entry or a
        frame has changed owner since the handle was made.
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
    frames = gather_windows(pages.frames, entries, num_chunks)
    is_same = is_owned[:, None] & (frames == handle.frames.reshape(frames.shape))
    stale = (entries != NO_ENTRY) & ~jnp.all(is_same, axis=-1)

    # One lane per key, the leader, carries the sum of its duplicates.
    leaders = find_leaders(entries, is_owned)
    leads = leaders == jnp.arange(num_lanes)
    grads = jnp.reshape(vector_grads, (num_lanes, num_chunks, config.chunk_dim))
    summed, norm = sum_duplicates(leaders, grads)
    is_finite = jnp.isfinite(norm)
    live = leads[:, None] & is_same
    steps = live & is_finite & (frames != NULL_FRAME)
    stepped = jnp.where(steps, frames, NULL_FRAME).reshape(-1)

    values = gather_chunks(state.pool.values, stepped, config.chunk_dim)
    pool, is_sound = update_frames(
        state.pool,
        stepped,
        summed.reshape(-1, config.chunk_dim),
        optimizer,
        step=state.step,
    )
    is_spoilt = live & ~(is_finite & is_sound.reshape(steps.shape))
    stats = ScoreStats(
        count=_sum_to(leaders, jnp.ones((num_lanes, num_chunks), jnp.float32)),
        grad_norm=norm,
        sum_of_norms=_sum_to(leaders, _norm(grads.astype(jnp.float32))),
        value_dot_grad=jnp.sum(values.reshape(summed.shape) * summed, axis=-1),
        table=jnp.broadcast_to(tables[:, None], frames.shape),
    )
    scored = jnp.where(leads, entries, NO_ENTRY)
    now = jnp.full((num_lanes, 1), step, jnp.int32)
    last_step, last = exchange_windows(pages.last_step, scored, now)
    before = gather_windows(pages.utility, scored, num_chunks)
    before = decay(before, step - last, config.half_life)
    after = accumulate(before, _score(config, stats))
    utility = jnp.where(live & ~is_spoilt, after, before)
    new_pages = dataclasses.replace(
        pages,
        last_step=last_step,
        utility=scatter_windows(pages.utility, scored, utility),
    )
    info = ApplyInfo(
        updated=jnp.sum(steps & ~is_spoilt),
        stale=jnp.sum(stale),
        non_finite=jnp.sum(is_spoilt),
    )
    new_state = dataclasses.replace(state, step=step, pages=new_pages, pool=pool)
    return new_state, info


def sum_duplicates(leaders: jax.Array, grads: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum the gradients of duplicates into their leader's row.

    Args:
      leaders: `i32[N]` from `bidding.find_leaders`.
      grads: `[N, K, C]`.

    Returns:
      `f32[N, K, C]` the sums, zeros in rows that lead nothing; and `f32[N, K]` their
      norms.
    """
    summed = _sum_to(leaders, grads.astype(jnp.float32))
    return summed, _norm(summed)


def _sum_to(leaders: jax.Array, terms: jax.Array) -> jax.Array:
    """Sum the terms of duplicates into their leader's row; other rows are 0."""
    return jnp.zeros_like(terms).at[leaders].add(terms, mode="drop")


def _norm(grads: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(grads), axis=-1))


def _score(config: EmbeddingConfig, stats: ScoreStats) -> jax.Array:
    score = jnp.asarray(config.scorer(stats))
    if score.shape != stats.count.shape:
        raise ValueError(
            f"scorer must return one score per chunk, shape {stats.count.shape}; "
            f"got {score.shape}"
        )
    return score.astype(jnp.float32)
