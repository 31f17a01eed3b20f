"""The update: sum duplicates, step frames, score chunks."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import gather_windows, scatter_windows
from pallas_kernels.api import Implementation

from .bidding import find_leaders
from .chunk_pool import read_values, update_frames
from .coarse import step_coarse
from .config import EmbeddingConfig
from .extent import frames_of_entries
from .handle import Handle
from .key_rows import KeyBlock, norms, sum_duplicates, sum_rows
from .keys import Keys
from .page_table import owns
from .scorers import ScoreStats
from .shared_pool import fallback_frames
from .sparse_optim import SparseOptimizer
from .state import NO_ENTRY, NULL_FRAME, ChunkPool, EmbeddingState
from .table_rules import zero_beyond
from .utility import (
    accumulate,
    decode,
    encode,
    growth_factor,
    rounding_salt,
)

__all__ = ["ApplyInfo", "apply_gradients"]


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
    pages = state.pages
    num_lanes, num_chunks = handle.mask.size, config.num_chunks
    entries, tables = handle.entries.reshape(-1), handle.tables.reshape(-1)
    keys = Keys(*(jnp.reshape(word, -1) for word in handle.keys))

    if not num_lanes:
        nothing = jnp.int32(0)
        new_state = dataclasses.replace(state, step=state.step + 1)
        return new_state, ApplyInfo(nothing, nothing, nothing)

    # The handle may be older than the state: what changed owner is left alone.
    is_owned = owns(pages, entries, keys, tables)
    leaders = find_leaders(entries, is_owned)
    grads = jnp.reshape(vector_grads, (num_lanes, num_chunks, config.chunk_dim))
    grads = zero_beyond(grads, tables, config)
    rows = sum_rows(leaders, grads, config)

    def step_block(carry: _Carry) -> _Carry:
        part = rows.part(carry.block)
        scored = jnp.where(part.is_row, entries[part.lane], NO_ENTRY)
        return _step_rows(
            state, carry, scored, tables[part.lane], part, config, optimizer
        )

    # Keys are often few against lanes: only so many blocks of rows are worked on.
    zero = jnp.int32(0)
    carry = _Carry(zero, state.pool, pages.utility, pages.coarse, zero, zero)
    carry = lax.while_loop(
        lambda carry: carry.block * rows.block_size < rows.count, step_block, carry
    )
    new_pages = dataclasses.replace(pages, utility=carry.utility, coarse=carry.coarse)
    is_stale = (entries != NO_ENTRY) & ~is_owned
    shared, num_spoilt = state.shared, carry.non_finite
    if shared is not None:
        frames = frames_of_entries(pages, handle.entries, config)
        frames = fallback_frames(handle, frames, config).reshape(grads.shape[:2])
        frames = jnp.where(is_stale[:, None], NULL_FRAME, frames)
        shared, num_more = _step_shared(
            shared, frames, grads, state.step, optimizer, config.kernels
        )
        num_spoilt += num_more
    info = ApplyInfo(
        updated=carry.updated,
        stale=jnp.sum(is_stale, dtype=jnp.int32),
        non_finite=num_spoilt,
    )
    new_state = dataclasses.replace(
        state, step=state.step + 1, pages=new_pages, pool=carry.pool, shared=shared
    )
    return new_state, info


class _Carry(NamedTuple):
    """What changes from block to block."""

    block: jax.Array  # i32[]
    pool: ChunkPool
    utility: jax.Array  # u16[M * U]
    coarse: jax.Array | None  # u8[M * Q]
    updated: jax.Array  # i32[]
    non_finite: jax.Array  # i32[]


def _step_rows(
    state: EmbeddingState,
    carry: _Carry,
    entries: jax.Array,
    tables: jax.Array,
    part: KeyBlock,
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
) -> _Carry:
    """Step the chunks of a block of keys, and score them.

    Args:
      state: the state before the update.
      carry: what changes.
      entries: `i32[n]`, `NO_ENTRY` for rows that are not there.
      tables: `i32[n]`.
      part: the block.
      config: sizes and rules.
      optimizer: the store's optimizer.

    Returns:
      The carry, updated.
    """
    frames = frames_of_entries(state.pages, entries, config)
    is_finite = jnp.isfinite(norms(part.grad))
    steps = is_finite & (frames != NULL_FRAME)
    stepped = jnp.where(steps, frames, NULL_FRAME).reshape(-1)
    values = read_values(carry.pool, stepped, config.chunk_dim, config.kernels)
    pool, is_sound = update_frames(
        carry.pool,
        stepped,
        part.grad.reshape(-1, config.chunk_dim),
        optimizer,
        step=state.step,
        scale=optimizer.scale_of(jnp.repeat(tables, config.num_chunks)),
        kernels=config.kernels,
    )
    is_sound = is_finite & is_sound.reshape(steps.shape)
    coarse = carry.coarse
    if coarse is not None:
        coarse, is_coarse_sound = step_coarse(
            coarse,
            entries,
            part.grad,
            is_finite & (frames == NULL_FRAME),
            tables,
            optimizer,
            config,
            step=state.step,
        )
        is_sound &= steps | is_coarse_sound
    is_spoilt = part.is_row[:, None] & ~is_sound

    # A row of statistics per utility: of a chunk, or of the whole vector.
    rows = (entries.size, config.num_utilities)
    parts = (*rows, config.embedding_dim // config.num_utilities)
    stats = ScoreStats(
        count=jnp.broadcast_to(part.times[:, None], rows),
        grad_norm=norms(part.grad.reshape(parts)),
        sum_of_norms=part.sum_of_norms,
        value_dot_grad=jnp.sum(
            (values.reshape(part.grad.shape) * part.grad).reshape(parts), axis=-1
        ),
        table=jnp.broadcast_to(tables[:, None], rows),
    )
    per_row = (*rows, config.num_chunks // config.num_utilities)
    scores = part.is_row[:, None] & ~jnp.any(is_spoilt.reshape(per_row), axis=-1)
    step = state.step + 1
    codes = gather_windows(carry.utility, entries, config.num_utilities)
    growth = growth_factor(step - state.decayed_at, config.half_life)
    utility = accumulate(decode(codes), _score(config, stats), growth)
    number = lax.broadcasted_iota(jnp.int32, rows, 1)
    salt = rounding_salt(step, entries[:, None] * config.num_utilities + number)
    codes = jnp.where(scores, encode(utility, salt), codes)
    return _Carry(
        block=carry.block + 1,
        pool=pool,
        utility=scatter_windows(carry.utility, entries, codes),
        coarse=coarse,
        updated=carry.updated + jnp.sum(steps & ~is_spoilt, dtype=jnp.int32),
        non_finite=carry.non_finite + jnp.sum(is_spoilt, dtype=jnp.int32),
    )


def _step_shared(
    shared: ChunkPool,
    frames: jax.Array,
    grads: jax.Array,
    step: jax.Array,
    optimizer: SparseOptimizer,
    kernels: Implementation | None,
) -> tuple[ChunkPool, jax.Array]:
    """Step the shared vectors from which lanes have read.

    Args:
      shared: the shared pool.
      frames: `i32[N, K]` from `fallback_frames`.
      grads: `[N, K, C]`.
      step: `i32[]` updates before this one.
      optimizer: the store's optimizer.
      kernels: as for `EmbeddingConfig`.

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
        purpose=3,
        kernels=kernels,
    )
    is_sound = is_finite & is_sound.reshape(targets.shape)
    return pool, jnp.sum((targets != NULL_FRAME) & ~is_sound)


def _score(config: EmbeddingConfig, stats: ScoreStats) -> jax.Array:
    score = jnp.asarray(config.scorer(stats))
    if score.shape != stats.count.shape:
        raise ValueError(
            "scorer must return one score per row of its statistics, shape "
            f"{stats.count.shape}; got {score.shape}"
        )
    return score.astype(jnp.float32)
