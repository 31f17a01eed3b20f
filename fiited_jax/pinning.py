"""Pinning: keys that are never evicted and rank above all others."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels import gather_windows, scatter_windows

from .config import EmbeddingConfig
from .handle import Lookups
from .page_table import probe
from .row_numbers import entries_of_rows
from .state import NO_ENTRY, EmbeddingState
from .utility import PINNED, decode, encode

__all__ = ["pin", "unpin"]


def pin(
    state: EmbeddingState, lookups: Lookups, config: EmbeddingConfig
) -> tuple[EmbeddingState, jax.Array]:
    """Pin the keys that have an entry; see `EmbeddingStore.pin`."""
    if config.table_sizes is None:
        entries = _entries(state, lookups, config)
    else:
        entries = entries_of_rows(lookups.keys.low, lookups.tables, config.table_sizes)
        entries = jnp.where(lookups.valid, entries, NO_ENTRY)
    state = _set_utilities(state, entries, jnp.float32(PINNED), config)
    return state, (entries != NO_ENTRY).reshape(lookups.mask.shape)


def unpin(
    state: EmbeddingState, lookups: Lookups, config: EmbeddingConfig
) -> tuple[EmbeddingState, jax.Array]:
    """Let keys compete again; see `EmbeddingStore.unpin`."""
    entries = _entries(state, lookups, config)
    codes = gather_windows(state.pages.utility, entries, config.num_utilities)
    is_pinned = (entries != NO_ENTRY) & (decode(codes[:, 0]) == PINNED)
    entries = jnp.where(is_pinned, entries, NO_ENTRY)
    # What a chunk needs to keep its frame; pinned keys may be all that was chosen.
    utility = jnp.where(state.threshold == PINNED, 0.0, state.threshold)
    state = _set_utilities(state, entries, utility, config)
    return state, is_pinned.reshape(lookups.mask.shape)


def _entries(
    state: EmbeddingState, lookups: Lookups, config: EmbeddingConfig
) -> jax.Array:
    return probe(state.pages, lookups.keys, lookups.tables, lookups.valid, config)


def _set_utilities(
    state: EmbeddingState,
    entries: jax.Array,
    utility: jax.Array,
    config: EmbeddingConfig,
) -> EmbeddingState:
    """Give entries `i32[N]` one utility; repeats write the same."""
    shape = (entries.size, config.num_utilities)
    codes = encode(jnp.broadcast_to(utility, shape), jnp.uint32(0))
    utilities = scatter_windows(state.pages.utility, entries, codes)
    pages = dataclasses.replace(state.pages, utility=utilities)
    return dataclasses.replace(state, pages=pages)
