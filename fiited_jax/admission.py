"""Admission: entries and first frames for new keys, in place of colder ones."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import gather_windows

from .chunk_pool import initial_values, pop_frames, push_frames, write_fresh
from .config import EmbeddingConfig
from .handle import Handle, Lookups, make_handle
from .keys import Keys
from .page_table import place, probe, replace_entries, touch
from .sparse_optim import SparseOptimizer
from .state import EMPTY_TABLE, NO_ENTRY, NULL_FRAME, EmbeddingState

__all__ = ["AdmitInfo", "admit"]


class AdmitInfo(NamedTuple):
    """What an admission did. Counts are scalars; N is the number of ids.

    Attributes:
      hits: `i32[]` lookups whose key was tracked before.
      misses: `i32[]` lookups whose key was not; padding, and tables out of range, are
        neither.
      admitted: `i32[]` keys that got an entry.
      evicted: `i32[]` keys that lost theirs.
      failed: `i32[]` lookups without an entry: this batch holds all ways of their
        bucket, or their table number is out of range.
      frames_used: `i32[]` frames owned by chunks afterwards.
      evicted_keys: words `u32[N]` of the evicted keys, where `evicted_mask`.
      evicted_tables: `i32[N]` their tables.
      evicted_mask: `bool[N]`.
    """

    hits: jax.Array
    misses: jax.Array
    admitted: jax.Array
    evicted: jax.Array
    failed: jax.Array
    frames_used: jax.Array
    evicted_keys: Keys
    evicted_tables: jax.Array
    evicted_mask: jax.Array


def admit(
    state: EmbeddingState,
    lookups: Lookups,
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
) -> tuple[EmbeddingState, Handle, AdmitInfo]:
    """Find keys and page new ones in; see `EmbeddingStore.admit`."""
    keys, tables, num_ways = lookups.keys, lookups.tables, config.num_ways
    now = state.step + 1  # the step that this batch takes
    found = probe(state.pages, keys, tables, lookups.valid, num_ways)
    is_hit = found != NO_ENTRY
    pages = touch(state.pages, found, now, config.half_life)
    placed, is_new = place(
        pages,
        keys,
        tables,
        lookups.valid & ~is_hit,
        now,
        num_ways=num_ways,
        half_life=config.half_life,
    )
    entries = jnp.where(is_hit, found, placed)

    # Whole entries are evicted: their frames return before new ones are handed out.
    new_entries = jnp.where(is_new, entries, NO_ENTRY)
    freed = gather_windows(pages.frames, new_entries, config.num_chunks)
    free = push_frames(state.free, jnp.where(is_new[:, None], freed, NULL_FRAME))
    first = jnp.arange(config.num_chunks, dtype=jnp.int32) < config.initial_chunks
    free, frames = pop_frames(free, is_new[:, None] & first[None, :])
    pages, old_keys, old_tables = replace_entries(
        pages, new_entries, keys, tables, frames, now
    )
    is_evicted = is_new & (old_tables != EMPTY_TABLE)

    pool = state.pool
    for chunk in range(config.initial_chunks):
        values = initial_values(
            state.seed,
            keys,
            tables,
            jnp.full_like(tables, chunk),
            config.chunk_dim,
            config.initial_scale,
        )
        pool = write_fresh(pool, frames[:, chunk], values, optimizer)

    num_hits = jnp.sum(is_hit)
    info = AdmitInfo(
        hits=num_hits,
        misses=jnp.sum(lookups.valid) - num_hits,
        admitted=jnp.sum(is_new),
        evicted=jnp.sum(is_evicted),
        failed=jnp.sum(lookups.mask.reshape(-1) & (entries == NO_ENTRY)),
        frames_used=config.num_frames - 1 - free.count,
        evicted_keys=old_keys,
        evicted_tables=old_tables,
        evicted_mask=is_evicted,
    )
    new_state = dataclasses.replace(state, pages=pages, pool=pool, free=free)
    return new_state, make_handle(pages, lookups, entries), info
