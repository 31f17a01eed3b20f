"""The page table: a set-associative hash table from keys to entries."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import (
    NO_WAY,
    exchange_windows,
    gather_windows,
    probe_page_table,
    scatter_windows,
)

from .bidding import bid
from .keys import Keys, hash_words
from .state import EMPTY_TABLE, NO_ENTRY, NULL_FRAME, PageTable
from .utility import decay

__all__ = [
    "buckets_of",
    "init_page_table",
    "owns",
    "place",
    "probe",
    "replace_entries",
    "touch",
]


def init_page_table(num_entries: int, num_chunks: int) -> PageTable:
    """Return a table of M empty entries with K chunks each."""
    # No two arrays may share a buffer: the state is donated as a whole.
    return PageTable(
        key_low=jnp.zeros(num_entries, jnp.uint32),
        key_high=jnp.zeros(num_entries, jnp.uint32),
        table=jnp.full(num_entries, EMPTY_TABLE, jnp.int32),
        last_step=jnp.zeros(num_entries, jnp.int32),
        frames=jnp.full(num_entries * num_chunks, NULL_FRAME, jnp.int32),
        utility=jnp.zeros(num_entries * num_chunks, jnp.float32),
    )


def buckets_of(keys: Keys, tables: jax.Array, num_buckets: int) -> jax.Array:
    """Return the bucket each key may live in, `i32[N]`."""
    mixed = hash_words(keys.low, keys.high, tables)
    return (mixed % jnp.uint32(num_buckets)).astype(jnp.int32)


def probe(
    pages: PageTable, keys: Keys, tables: jax.Array, valid: jax.Array, num_ways: int
) -> jax.Array:
    """Find the entries of keys.

    Args:
      pages: the page table.
      keys: words `u32[N]`.
      tables: `i32[N]`.
      valid: `bool[N]`; the others are not found.
      num_ways: W.

    Returns:
      `i32[N]` entries, `NO_ENTRY` where the key is not tracked.
    """
    buckets = buckets_of(keys, tables, pages.table.size // num_ways)
    way = probe_page_table(
        (pages.key_low, pages.key_high, pages.table),
        (keys.low, keys.high, tables),
        buckets,
        num_ways,
    )
    found = valid & (way != NO_WAY)
    return jnp.where(found, buckets * num_ways + way, NO_ENTRY)


def owns(
    pages: PageTable, entries: jax.Array, keys: Keys, tables: jax.Array
) -> jax.Array:
    """Tell whether entries still track the keys they were found for, `bool[N]`."""
    at = jnp.maximum(entries, 0)
    return (
        (entries != NO_ENTRY)
        & (pages.key_low[at] == keys.low)
        & (pages.key_high[at] == keys.high)
        & (pages.table[at] == tables)
    )


def touch(
    pages: PageTable, entries: jax.Array, now: jax.Array, half_life: float
) -> PageTable:
    """Bring the utilities of entries up to date, and mark the entries as in use.

    Args:
      pages: the page table.
      entries: `i32[N]`, repeats allowed; `NO_ENTRY` is passed over.
      now: `i32[]` the step to decay to.
      half_life: steps in which a utility halves.

    Returns:
      The page table; `last_step` of the entries is `now`.
    """
    num_chunks = pages.utility.size // pages.table.size
    steps = jnp.full((entries.size, 1), now, jnp.int32)
    # Repeats write the same words, so their order does not matter.
    last_step, before = exchange_windows(pages.last_step, entries, steps)
    utility = gather_windows(pages.utility, entries, num_chunks)
    utility = decay(utility, now - before, half_life)
    return dataclasses.replace(
        pages,
        last_step=last_step,
        utility=scatter_windows(pages.utility, entries, utility),
    )


def _eviction_order(
    pages: PageTable,
    buckets: jax.Array,
    now: jax.Array,
    num_ways: int,
    half_life: float,
) -> jax.Array:
    """Rank the ways of each lane's bucket, lowest first: `f32[N, W]`.

    Empty ways come first, then the lowest utility decayed to now; what was touched
    now is never taken.
    """
    num_chunks = pages.utility.size // pages.table.size
    utility = gather_windows(pages.utility, buckets, num_ways * num_chunks)
    worth = jnp.max(utility.reshape(-1, num_ways, num_chunks), axis=-1)
    last_step = gather_windows(pages.last_step, buckets, num_ways)
    order = decay(worth, now - last_step, half_life)
    is_empty = gather_windows(pages.table, buckets, num_ways) == EMPTY_TABLE
    return jnp.where(is_empty, -1.0, jnp.where(last_step == now, jnp.inf, order))


def place(
    pages: PageTable,
    keys: Keys,
    tables: jax.Array,
    waiting: jax.Array,
    now: jax.Array,
    *,
    num_ways: int,
    half_life: float,
) -> tuple[jax.Array, jax.Array]:
    """Choose entries for keys that are not tracked; writes nothing.

    As if lane by lane: a key takes an empty way of its bucket, else the way of lowest
    utility that is not in use now (ties: the lowest way), else none.

    Args:
      pages: the page table, entries in use touched.
      keys: words `u32[N]`.
      tables: `i32[N]`.
      waiting: `bool[N]` the lanes that want an entry; their keys are not tracked.
      now: `i32[]` the step to which utilities are decayed.
      num_ways: W.
      half_life: steps in which a utility halves.

    Returns:
      `i32[N]` entries, one per key, `NO_ENTRY` for lanes that got none; and
      `bool[N]`, true for the first lane of each key that got one.
    """
    buckets = buckets_of(keys, tables, pages.table.size // num_ways)
    lanes = lax.iota(jnp.int32, tables.size)
    order = _eviction_order(pages, buckets, now, num_ways, half_life)
    nowhere = jnp.full_like(lanes, NO_ENTRY)

    def lacking(entries: jax.Array, order: jax.Array) -> jax.Array:
        has_way = jnp.min(order, axis=-1) < jnp.inf
        return waiting & (entries == NO_ENTRY) & has_way

    def some_lack(carry: tuple[jax.Array, ...]) -> jax.Array:
        _, entries, _, order = carry
        return jnp.any(lacking(entries, order))

    def bid_round(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        # The lanes of a bucket want the same way, and the key of the lowest gets it.
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

    start = (jnp.uint32(0), nowhere, jnp.zeros_like(waiting), order)
    _, entries, is_first, _ = lax.while_loop(some_lack, bid_round, start)
    return entries, is_first


def replace_entries(
    pages: PageTable,
    entries: jax.Array,
    keys: Keys,
    tables: jax.Array,
    frames: jax.Array,
    now: jax.Array,
) -> tuple[PageTable, Keys, jax.Array]:
    """Make entries track other keys, with no utility yet.

    Args:
      pages: the page table.
      entries: `i32[N]` distinct; `NO_ENTRY` writes nothing.
      keys: words `u32[N]`.
      tables: `i32[N]`.
      frames: `i32[N, K]`.
      now: `i32[]` the step that this batch takes.

    Returns:
      The page table, updated; and the keys that the entries tracked before, with
      their tables `i32[N]`, `EMPTY_TABLE` for none. Where nothing is written they
      mean nothing.
    """
    steps = jnp.full((entries.size, 1), now, jnp.int32)
    key_low, old_low = exchange_windows(pages.key_low, entries, keys.low[:, None])
    key_high, old_high = exchange_windows(pages.key_high, entries, keys.high[:, None])
    table, old_table = exchange_windows(pages.table, entries, tables[:, None])
    new_pages = PageTable(
        key_low=key_low,
        key_high=key_high,
        table=table,
        last_step=scatter_windows(pages.last_step, entries, steps),
        frames=scatter_windows(pages.frames, entries, frames),
        utility=scatter_windows(
            pages.utility, entries, jnp.zeros(frames.shape, jnp.float32)
        ),
    )
    return new_pages, Keys(old_low[:, 0], old_high[:, 0]), old_table[:, 0]
