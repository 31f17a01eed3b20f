"""Admission: entries and first frames for new keys, in place of colder ones."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .arena import allot, frames_used
from .bidding import lanes_of_rows, rank_of
from .chunk_pool import write_frames
from .config import EmbeddingConfig
from .doorkeeper import recognize
from .extent import first_chunks
from .fresh import fresh_frames
from .handle import Handle, Lookups, make_handle
from .keys import Keys
from .page_table import NO_TABLE, place, probe, replace_entries
from .sparse_optim import SparseOptimizer
from .state import (
    NO_ENTRY,
    NULL_FRAME,
    ChunkPool,
    EmbeddingState,
    PageTable,
)

__all__ = ["AdmitInfo", "admit"]

_BLOCKS = 16  # of lanes: what is done for new keys is done for this part at a time


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
    found = probe(state.pages, keys, tables, lookups.valid, config)
    is_hit = found != NO_ENTRY
    waiting = lookups.valid & ~is_hit
    memory, limit = state.doorkeeper, jnp.full(tables.shape, jnp.inf, jnp.float32)
    if memory is not None:
        memory, is_known = recognize(memory, keys, tables, waiting)
        limit = jnp.where(is_known, limit, _filter_limit(state, config))
    placed, is_new = place(state.pages, keys, tables, waiting, found, limit, num_ways)
    entries = jnp.where(is_hit, found, placed)
    new_entries = jnp.where(is_new, entries, NO_ENTRY)
    arena, start, count = allot(state, new_entries, tables, config)
    new = _NewKeys(new_entries, keys, tables, start, count)
    pages, pool, evicted = _write_new(state, new, config, optimizer)
    is_evicted = is_new & (evicted.tables != NO_TABLE)

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
        evicted_keys=evicted.keys,
        evicted_tables=evicted.tables,
        evicted_mask=is_evicted,
    )
    new_state = dataclasses.replace(
        state, pages=pages, pool=pool, arena=arena, doorkeeper=memory
    )
    return new_state, make_handle(lookups, entries), info


class _NewKeys(NamedTuple):
    """Keys that get an entry, by lane.

    Attributes:
      entries: `i32[N]`, `NO_ENTRY` for lanes that are not new.
      keys: words `u32[N]`.
      tables: `i32[N]`.
      start: `i32[N]` first frames of their runs.
      count: `i32[N]` frames of their runs.
    """

    entries: jax.Array
    keys: Keys
    tables: jax.Array
    start: jax.Array
    count: jax.Array


class _Evicted(NamedTuple):
    """The keys that entries tracked before, by the lane of their successor."""

    keys: Keys  # words u32[N]
    tables: jax.Array  # i32[N], NO_TABLE for none


def _write_new(
    state: EmbeddingState,
    new: _NewKeys,
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
) -> tuple[PageTable, ChunkPool, _Evicted]:
    """Write the entries and first frames of new keys.

    New keys are often few against lanes: only so many blocks of them are worked on.

    Args:
      state: the state.
      new: the keys.
      config: sizes and rules.
      optimizer: the store's optimizer.

    Returns:
      The page table, the pool and who was evicted.
    """
    num_lanes = new.tables.size
    nobody = _Evicted(
        Keys(*(jnp.zeros_like(word) for word in new.keys)),
        jnp.full_like(new.tables, NO_TABLE),
    )
    if not num_lanes:
        return state.pages, state.pool, nobody
    is_new = new.entries != NO_ENTRY
    rank, num_new = rank_of(is_new)
    block = max(-(-num_lanes // _BLOCKS), 1)
    lanes_by_row = lanes_of_rows(rank, is_new, block * _BLOCKS)
    initial = lax.iota(jnp.int32, config.initial_chunks)[None, :]

    def write_block(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        number, pages, pool, evicted = carry
        lanes = lax.dynamic_slice_in_dim(lanes_by_row, number * block, block)
        is_row = number * block + lax.iota(jnp.int32, block) < num_new
        part = jax.tree.map(lambda column: column[lanes], new)
        pages, old_keys, old_tables = replace_entries(
            pages,
            jnp.where(is_row, part.entries, NO_ENTRY),
            part.keys,
            part.tables,
            part.start,
            first_chunks(part.count, config),
        )
        is_given = is_row[:, None] & (initial < part.count[:, None])
        frames = jnp.where(is_given, part.start[:, None] + initial, NULL_FRAME)
        chunks = jnp.broadcast_to(initial, frames.shape).reshape(-1)
        entries, keys, tables = jax.tree.map(
            lambda column: jnp.repeat(column, config.initial_chunks),
            (part.entries, part.keys, part.tables),
        )
        values, slots = fresh_frames(
            state, pages, entries, keys, tables, chunks, config, optimizer
        )
        pool = write_frames(pool, frames.reshape(-1), values, slots, config.kernels)
        to = jnp.where(is_row, lanes, num_lanes)
        evicted = jax.tree.map(
            lambda column, old: column.at[to].set(old, mode="drop"),
            evicted,
            _Evicted(old_keys, old_tables),
        )
        return number + 1, pages, pool, evicted

    carry = (jnp.int32(0), state.pages, state.pool, nobody)
    _, pages, pool, evicted = lax.while_loop(
        lambda carry: carry[0] * block < num_new, write_block, carry
    )
    return pages, pool, evicted


def _filter_limit(state: EmbeddingState, config: EmbeddingConfig) -> jax.Array:
    """The utility below which an entry may make place for a key not seen before.

    Such an entry has at most its first chunks, or would lose what more it has.
    """
    weights = config.priority_weights
    return state.threshold / weights[min(config.initial_chunks, len(weights) - 1)]
