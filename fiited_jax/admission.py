"""Admission: entries and first frames for new keys, in place of colder ones."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .arena import allot, frames_used
from .chunk_pool import write_fresh
from .config import EmbeddingConfig
from .doorkeeper import recognize
from .extent import first_chunks
from .handle import Handle, Lookups, make_handle
from .keys import Keys
from .page_table import NO_TABLE, place, probe, replace_entries
from .shared_pool import fresh_values
from .sparse_optim import SparseOptimizer
from .state import NO_ENTRY, NULL_FRAME, EmbeddingState

__all__ = ["AdmitInfo", "admit"]


class AdmitInfo(NamedTuple):
    """What an admission did. Counts are scalars; N is the number of ids.

    Attributes:
      hits: `i32[]` lookups whose key was tracked before.
      misses: `i32[]` lookups whose key was not; padding, and tables out of range, are
        neither.
      admitted: `i32[]` keys that got an entry.
      evicted: `i32[]` keys that lost theirs.
      filtered: `i32[]` lookups without an entry whose key has not come before, with an
        admission filter.
      failed: `i32[]` other lookups without an entry: this batch holds all ways of
        their bucket, or their table number or id is out of range.
      frames_used: `i32[]` frames owned by chunks afterwards.
      evicted_keys: words `u32[N]` of the evicted keys, where `evicted_mask`.
      evicted_tables: `i32[N]` their tables.
      evicted_mask: `bool[N]`.
    """

    hits: jax.Array
    misses: jax.Array
    admitted: jax.Array
    evicted: jax.Array
    filtered: jax.Array
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
    found = probe(state.pages, keys, tables, lookups.valid, num_ways)
    is_hit = found != NO_ENTRY
    waiting = lookups.valid & ~is_hit
    memory, limit = state.doorkeeper, jnp.full(tables.shape, jnp.inf, jnp.float32)
    if memory is not None:
        memory, is_known = recognize(memory, keys, tables, waiting)
        limit = jnp.where(is_known, limit, _filter_limit(state, config))
    placed, is_new = place(state.pages, keys, tables, waiting, found, limit, num_ways)
    entries = jnp.where(is_hit, found, placed)
    new_entries = jnp.where(is_new, entries, NO_ENTRY)
    arena, start, count = allot(state, new_entries, config)
    pages, old_keys, old_tables = replace_entries(
        state.pages, new_entries, keys, tables, start, first_chunks(count, config)
    )
    is_evicted = is_new & (old_tables != NO_TABLE)

    pool = state.pool
    for chunk in range(config.initial_chunks):
        chunks = jnp.full_like(tables, chunk)
        values = fresh_values(state.shared, state.seed, keys, tables, chunks, config)
        frames = jnp.where(chunk < count, start + chunk, NULL_FRAME)
        pool = write_fresh(pool, frames, values, optimizer)

    num_hits = jnp.sum(is_hit, dtype=jnp.int32)
    is_filtered = waiting & (entries == NO_ENTRY) & (limit < jnp.inf)
    info = AdmitInfo(
        hits=num_hits,
        misses=jnp.sum(lookups.valid, dtype=jnp.int32) - num_hits,
        admitted=jnp.sum(is_new, dtype=jnp.int32),
        evicted=jnp.sum(is_evicted, dtype=jnp.int32),
        filtered=jnp.sum(is_filtered, dtype=jnp.int32),
        failed=jnp.sum(lookups.mask.reshape(-1) & (entries == NO_ENTRY) & ~is_filtered),
        frames_used=frames_used(arena),
        evicted_keys=old_keys,
        evicted_tables=old_tables,
        evicted_mask=is_evicted,
    )
    new_state = dataclasses.replace(
        state, pages=pages, pool=pool, arena=arena, doorkeeper=memory
    )
    return new_state, make_handle(lookups, entries), info


def _filter_limit(state: EmbeddingState, config: EmbeddingConfig) -> jax.Array:
    """The utility below which an entry may make place for a key not seen before.

    Such an entry has at most its first chunks, or would lose what more it has.
    """
    weights = config.priority_weights
    return state.threshold / weights[min(config.initial_chunks, len(weights) - 1)]
