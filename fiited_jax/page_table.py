"""The page table: a set-associative hash table from keys to entries.

Or, with `table_sizes`, an entry for every row.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import (
    NO_WAY,
    exchange_windows,
    gather_windows,
    probe_and_load,
    scatter_windows,
)

from .bidding import bid, find_leaders, lanes_of_rows, rank_of
from .config import EmbeddingConfig
from .extent import Runs, runs_of_entries
from .keys import Keys, hash_words
from .row_numbers import entries_of_rows, rows_of_entries, within_sizes
from .state import FREE_ENTRY, NO_ENTRY, NULL_FRAME, PageTable
from .utility import decode

# New keys are placed on their own if they are at most this part of the lanes.
_FEW = 8

NO_TABLE = -1  # the table of an entry that tracks no key

__all__ = [
    "NO_TABLE",
    "all_tables",
    "buckets_of",
    "init_page_table",
    "owns",
    "place",
    "probe",
    "probe_runs",
    "read_keys",
    "replace_entries",
]


def init_page_table(config: EmbeddingConfig) -> PageTable:
    """Return a table of M free entries."""
    # No two arrays may share a buffer: the state is donated as a whole.
    size = config.num_entries
    is_hashed = config.table_sizes is None
    is_wide = is_hashed and config.id_bits > 32
    return PageTable(
        key_low=jnp.zeros(size, jnp.uint32) if is_hashed else None,
        key_high=jnp.zeros(size, jnp.uint32) if is_wide else None,
        owner=jnp.full(size, FREE_ENTRY, config.owner_dtype) if is_hashed else None,
        extent=jnp.zeros(size, config.extent_dtype),
        start=jnp.full(size, NULL_FRAME, config.start_dtype),
        utility=jnp.zeros(size * config.num_utilities, jnp.uint16),
        coarse=(
            jnp.zeros(size * config.coarse_dim, jnp.uint8)
            if config.coarse_dim
            else None
        ),
        num_ways=config.num_ways if is_hashed else 1,
        table_sizes=config.table_sizes,
    )


def buckets_of(keys: Keys, tables: jax.Array, num_buckets: int) -> jax.Array:
    """Return the bucket each key may live in, `i32[N]`."""
    mixed = hash_words(keys.low, keys.high, tables)
    return (mixed % jnp.uint32(num_buckets)).astype(jnp.int32)


def _words(pages: PageTable) -> tuple[jax.Array, ...]:
    """The arrays that tell one key from another, where keys are stored."""
    assert pages.key_low is not None
    assert pages.owner is not None
    high = () if pages.key_high is None else (pages.key_high,)
    return (pages.key_low, pages.owner, *high)


def _query(pages: PageTable, keys: Keys, tables: jax.Array) -> tuple[jax.Array, ...]:
    """Keys in the form of `_words`."""
    high = () if pages.key_high is None else (keys.high,)
    return (keys.low, (tables + 1).astype(_words(pages)[1].dtype), *high)


def _is_held(pages: PageTable, entries: jax.Array) -> jax.Array:
    """Tell which entries in range have a chunk or a utility, `bool[n]`."""
    per_entry = pages.utility.size // pages.extent.size
    codes = gather_windows(pages.utility, entries, per_entry)
    return (pages.extent[entries] != 0) | jnp.any(codes != 0, axis=-1)


def read_keys(pages: PageTable, entries: jax.Array) -> tuple[Keys, jax.Array]:
    """Return the keys of entries in range, words `u32[n]` and tables `i32[n]`.

    The table of a free entry is `NO_TABLE`.
    """
    if pages.table_sizes is not None:
        low, tables = rows_of_entries(entries, pages.table_sizes)
        tables = jnp.where(_is_held(pages, entries), tables, NO_TABLE)
        return Keys(low, jnp.zeros_like(low)), tables
    low, owner, *high = (word[entries] for word in _words(pages))
    keys = Keys(low, high[0] if high else jnp.zeros_like(low))
    return keys, owner.astype(jnp.int32) - 1


def all_tables(pages: PageTable) -> jax.Array:
    """Return the tables of all entries, `i32[M]`, `NO_TABLE` of free ones."""
    if pages.table_sizes is None:
        return _words(pages)[1].astype(jnp.int32) - 1
    return read_keys(pages, lax.iota(jnp.int32, pages.extent.size))[1]


def probe(
    pages: PageTable,
    keys: Keys,
    tables: jax.Array,
    valid: jax.Array,
    config: EmbeddingConfig,
) -> jax.Array:
    """Find the entries of keys.

    Args:
      pages: the page table.
      keys: words `u32[N]`.
      tables: `i32[N]`.
      valid: `bool[N]`; the others are not found.
      config: sizes and rules.

    Returns:
      `i32[N]` entries, `NO_ENTRY` where the key is not tracked.
    """
    if pages.table_sizes is not None:
        entries = entries_of_rows(keys.low, tables, pages.table_sizes)
        found = valid & _is_held(pages, jnp.where(valid, entries, 0))
        return jnp.where(found, entries, NO_ENTRY)
    return _probe(pages, keys, tables, valid, config, ())[0]


def probe_runs(
    pages: PageTable,
    keys: Keys,
    tables: jax.Array,
    valid: jax.Array,
    config: EmbeddingConfig,
) -> tuple[jax.Array, Runs]:
    """Find the entries of keys, and load where their frames are in the same pass.

    Args:
      pages: the page table.
      keys: as for `probe`.
      tables: as for `probe`.
      valid: as for `probe`.
      config: sizes and rules.

    Returns:
      `i32[N]` as `probe`, and their runs.
    """
    if pages.table_sizes is not None:
        entries = probe(pages, keys, tables, valid, config)
        return entries, runs_of_entries(pages, entries)
    columns = (pages.start, pages.extent)
    entries, (start, extent) = _probe(pages, keys, tables, valid, config, columns)
    return entries, Runs(start, jnp.where(entries == NO_ENTRY, 0, extent))


def _probe(
    pages: PageTable,
    keys: Keys,
    tables: jax.Array,
    valid: jax.Array,
    config: EmbeddingConfig,
    columns: tuple[jax.Array, ...],
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Find entries by their stored keys, and load columns of them."""
    buckets = buckets_of(keys, tables, pages.extent.size // config.num_ways)
    way, loaded = probe_and_load(
        _words(pages),
        _query(pages, keys, tables),
        buckets,
        config.num_ways,
        columns,
        implementation=config.key_kernels,
    )
    found = valid & (way != NO_WAY)
    return jnp.where(found, buckets * config.num_ways + way, NO_ENTRY), loaded


def owns(
    pages: PageTable, entries: jax.Array, keys: Keys, tables: jax.Array
) -> jax.Array:
    """Tell whether entries still track the keys they were found for, `bool[N]`."""
    if pages.table_sizes is not None:  # an entry is its row's for good
        exists = within_sizes(keys.low, tables, pages.table_sizes) & (keys.high == 0)
        rows = entries_of_rows(keys.low, tables, pages.table_sizes)
        return exists & (entries == rows)
    at = jnp.maximum(entries, 0)
    same = entries != NO_ENTRY
    for word, wanted in zip(_words(pages), _query(pages, keys, tables), strict=True):
        same &= word[at] == wanted
    return same


def place(
    pages: PageTable,
    keys: Keys,
    tables: jax.Array,
    waiting: jax.Array,
    in_use: jax.Array,
    limit: jax.Array,
    num_ways: int,
) -> tuple[jax.Array, jax.Array]:
    """Choose entries for keys that are not tracked; writes nothing.

    With `table_sizes` a key takes the entry of its row. Else, as if lane by lane, a key
    takes a free way of its bucket, else the way of lowest utility that is not in use
    and below its limit (ties: the lowest way), else none.

    Args:
      pages: the page table.
      keys: words `u32[N]`.
      tables: `i32[N]`.
      waiting: `bool[N]` the lanes that want an entry; their keys are not tracked.
      in_use: `i32[n]` entries that may not be taken, `NO_ENTRY` for none.
      limit: `f32[N]` the utility that an entry must not have to be taken.
      num_ways: W.

    Returns:
      `i32[N]` entries, one per key, `NO_ENTRY` for lanes that got none; and
      `bool[N]`, true for the first lane of each key that got one.
    """
    if pages.table_sizes is not None:
        entries = entries_of_rows(keys.low, tables, pages.table_sizes)
        leaders = find_leaders(entries, waiting)
        is_first = leaders == lax.iota(jnp.int32, waiting.size)
        return jnp.where(waiting, entries, NO_ENTRY), is_first
    # One byte per entry: the exact set, without a sort and without a field to clear.
    marks = jnp.zeros(pages.extent.size, jnp.uint8)
    marks = scatter_windows(marks, in_use, jnp.ones((in_use.size, 1), jnp.uint8))

    def bid_of(lanes: jax.Array, taking_part: jax.Array) -> tuple[jax.Array, jax.Array]:
        part = Keys(keys.low[lanes], keys.high[lanes])
        order = _eviction_order(
            pages,
            buckets_of(part, tables[lanes], pages.extent.size // num_ways),
            marks,
            limit[lanes],
            num_ways,
        )
        return _bid_for_ways(order, part, tables[lanes], taking_part)

    def of_all() -> tuple[jax.Array, jax.Array]:
        return bid_of(lax.iota(jnp.int32, waiting.size), waiting)

    def of_those_waiting() -> tuple[jax.Array, jax.Array]:
        lanes = lanes_of_rows(rank, waiting, few)
        entries, is_first = bid_of(lanes, lax.iota(jnp.int32, few) < num_waiting)
        at = jnp.clip(rank, 0, few - 1)
        return jnp.where(waiting, entries[at], NO_ENTRY), waiting & is_first[at]

    rank, num_waiting = rank_of(waiting)
    few = max(waiting.size // _FEW, 1)
    if waiting.size <= few:
        return of_all()
    return lax.cond(num_waiting <= few, of_those_waiting, of_all)


class _Order(NamedTuple):
    """What lanes may take.

    Attributes:
      buckets: `i32[N]`.
      worth: `f32[N, W]` of the ways of each lane's bucket: lowest first.
    """

    buckets: jax.Array
    worth: jax.Array


def _eviction_order(
    pages: PageTable,
    buckets: jax.Array,
    marks: jax.Array,
    limit: jax.Array,
    num_ways: int,
) -> _Order:
    """Rank the ways of each lane's bucket.

    Free ways come first, then the lowest utility; what is marked, or not below the
    lane's limit, is never taken.
    """
    is_used = gather_windows(marks, buckets, num_ways) > 0
    per_entry = pages.utility.size // pages.extent.size
    codes = gather_windows(pages.utility, buckets, num_ways * per_entry)
    worth = decode(jnp.max(codes.reshape(-1, num_ways, per_entry), axis=-1))
    is_free = gather_windows(_words(pages)[1], buckets, num_ways) == FREE_ENTRY
    is_safe = is_used | (worth >= limit[:, None])
    worth = jnp.where(is_free, -1.0, jnp.where(is_safe, jnp.inf, worth))
    return _Order(buckets, worth)


def _bid_for_ways(
    order: _Order, keys: Keys, tables: jax.Array, waiting: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Give ways to keys, in the order of lanes; see `place`."""
    buckets, num_ways = order.buckets, order.worth.shape[1]
    lanes = lax.iota(jnp.int32, tables.size)
    nowhere = jnp.full_like(lanes, NO_ENTRY)

    def lacking(entries: jax.Array, order: jax.Array) -> jax.Array:
        has_way = jnp.min(order, axis=-1) < jnp.inf
        return waiting & (entries == NO_ENTRY) & has_way

    def some_lack(carry: tuple[jax.Array, ...]) -> jax.Array:
        _, entries, _, order = carry
        return jnp.any(lacking(entries, order))

    def bid_round(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        # The lanes of a bucket that can have one want the same way, the lowest; the
        # key of the first of them gets it.
        salt, entries, is_first, order = carry
        lacks = lacking(entries, order)
        winners = bid(buckets, lacks, salt)
        in_turn = lacks & (buckets[winners] == buckets)
        way = jnp.argmin(order, axis=-1).astype(jnp.int32)
        wins = in_turn & (
            (keys.low[winners] == keys.low)
            & (keys.high[winners] == keys.high)
            & (tables[winners] == tables)
        )
        entries = jnp.where(wins, buckets * num_ways + way, entries)
        is_first |= wins & (winners == lanes)
        ways = lax.broadcasted_iota(jnp.int32, order.shape, 1)
        is_taken = in_turn[:, None] & (ways == way[:, None])
        return salt + 1, entries, is_first, jnp.where(is_taken, jnp.inf, order)

    start = (jnp.uint32(0), nowhere, jnp.zeros_like(waiting), order.worth)
    _, entries, is_first, _ = lax.while_loop(some_lack, bid_round, start)
    return entries, is_first


def replace_entries(
    pages: PageTable,
    entries: jax.Array,
    keys: Keys,
    tables: jax.Array,
    start: jax.Array,
    extent: jax.Array,
) -> tuple[PageTable, Keys, jax.Array]:
    """Make entries track other keys, with no utility and no coarse values yet.

    With `table_sizes` an entry is its row's for good, and keeps its coarse values.

    Args:
      pages: the page table.
      entries: `i32[N]` distinct; `NO_ENTRY` writes nothing.
      keys: words `u32[N]`.
      tables: `i32[N]`.
      start: `i32[N]` first frames of their runs.
      extent: `[N]` which chunks have a frame.

    Returns:
      The page table, updated; and the keys that the entries tracked before, with
      their tables `i32[N]`, `NO_TABLE` for none. Where nothing is written they mean
      nothing.
    """
    per_entry = pages.utility.size // pages.extent.size
    no_utility = jnp.zeros((entries.size, per_entry), jnp.uint16)
    new_pages = dataclasses.replace(
        pages,
        extent=scatter_windows(pages.extent, entries, extent[:, None]),
        start=scatter_windows(pages.start, entries, start[:, None]),
        utility=scatter_windows(pages.utility, entries, no_utility),
    )
    if pages.table_sizes is not None:
        return new_pages, keys, jnp.full_like(tables, NO_TABLE)
    exchanged = [
        exchange_windows(word, entries, query[:, None])
        for word, query in zip(_words(pages), _query(pages, keys, tables), strict=True)
    ]
    (key_low, old_low), (owner, old_owner), *high = exchanged
    key_high, old_high = high[0] if high else (None, jnp.zeros_like(old_low))
    coarse = pages.coarse
    if coarse is not None:
        nothing = jnp.zeros((entries.size, coarse.size // pages.extent.size), jnp.uint8)
        coarse = scatter_windows(coarse, entries, nothing)
    new_pages = dataclasses.replace(
        new_pages, key_low=key_low, key_high=key_high, owner=owner, coarse=coarse
    )
    old_keys = Keys(old_low[:, 0], old_high[:, 0])
    return new_pages, old_keys, old_owner[:, 0].astype(jnp.int32) - 1
