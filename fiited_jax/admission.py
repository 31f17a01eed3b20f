"""Admission: entries and first frames for new keys, in place of colder ones."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import gather_windows

from .chunk_pool import initial_values, write_fresh
from .config import EmbeddingConfig
from .extent import first_chunks, num_present
from .handle import Handle, Lookups, make_handle
from .keys import Keys
from .page_table import NO_TABLE, place, probe, replace_entries
from .sparse_optim import SparseOptimizer
from .state import NO_ENTRY, NULL_FRAME, EmbeddingState, FrameArena

__all__ = ["AdmitInfo", "admit", "frames_used"]


class AdmitInfo(NamedTuple):
    """What an admission did. Counts are scalars; N is the number of ids.

    Attributes:
      hits: `i32[]` lookups whose key was tracked before.
      misses: `i32[]` lookups whose key was not; padding, and tables out of range, are
        neither.
      admitted: `i32[]` keys that got an entry.
      evicted: `i32[]` keys that lost theirs.
      failed: `i32[]` lookups without an entry: this batch holds all ways of their
        bucket, or their table number or id is out of range.
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
    found = probe(state.pages, keys, tables, lookups.valid, num_ways)
    is_hit = found != NO_ENTRY
    waiting = lookups.valid & ~is_hit
    placed, is_new = place(state.pages, keys, tables, waiting, found, num_ways)
    entries = jnp.where(is_hit, found, placed)
    new_entries = jnp.where(is_new, entries, NO_ENTRY)
    arena, start, count = _allot(state, new_entries, config)
    pages, old_keys, old_tables = replace_entries(
        state.pages, new_entries, keys, tables, start, first_chunks(count, config)
    )
    is_evicted = is_new & (old_tables != NO_TABLE)

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
        frames = jnp.where(chunk < count, start + chunk, NULL_FRAME)
        pool = write_fresh(pool, frames, values, optimizer)

    num_hits = jnp.sum(is_hit)
    info = AdmitInfo(
        hits=num_hits,
        misses=jnp.sum(lookups.valid) - num_hits,
        admitted=jnp.sum(is_new),
        evicted=jnp.sum(is_evicted),
        failed=jnp.sum(lookups.mask.reshape(-1) & (entries == NO_ENTRY)),
        frames_used=frames_used(arena),
        evicted_keys=old_keys,
        evicted_tables=old_tables,
        evicted_mask=is_evicted,
    )
    new_state = dataclasses.replace(state, pages=pages, pool=pool, arena=arena)
    return new_state, make_handle(lookups, entries), info


def frames_used(arena: FrameArena) -> jax.Array:
    """Count the frames that chunks own, `i32[]`."""
    return arena.next_frame - 1 - arena.idle


def _allot(
    state: EmbeddingState, new_entries: jax.Array, config: EmbeddingConfig
) -> tuple[FrameArena, jax.Array, jax.Array]:
    """Find frames for the first chunks of new keys, in the order of their lanes.

    A new key takes over frames of the one it evicts if that has enough; else it gets
    new ones while there are; else it takes over what there is.

    Returns:
      The arena; and `i32[N]` the start and length of the run of each new key, 0 for
      lanes that are not new.
    """
    wanted, arena = config.initial_chunks, state.arena
    is_new = new_entries != NO_ENTRY
    old_start = gather_windows(state.pages.start, new_entries, 1)[:, 0]
    old_extent = gather_windows(state.pages.extent, new_entries, 1)[:, 0]
    had = jnp.where(is_new, num_present(old_extent, config), 0)
    asks = is_new & (had < wanted)
    turn = jnp.cumsum(asks, dtype=jnp.int32) - asks
    left = (config.num_frames - arena.next_frame) // max(wanted, 1)
    is_served = asks & (turn < left)
    kept = jnp.where(is_served, 0, jnp.minimum(had, wanted))
    count = jnp.where(is_served, wanted, kept)
    start = jnp.where(is_served, arena.next_frame + turn * wanted, old_start)
    new_arena = FrameArena(
        next_frame=arena.next_frame + jnp.sum(is_served, dtype=jnp.int32) * wanted,
        idle=arena.idle + jnp.sum(had - kept, dtype=jnp.int32),
    )
    return new_arena, jnp.where(count > 0, start, NULL_FRAME), count
