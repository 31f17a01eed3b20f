"""The warm start: trained dense tables become a store that holds their best chunks.

Done once, on the host, like `EmbeddingStore.init`; NumPy plans and blocks of rows move.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .chunk_pool import write_fresh
from .coarse import encode_coarse
from .config import EmbeddingConfig
from .dense_tables import (
    PerTable,
    Rows,
    by_table,
    check_tables,
    padded,
    read_rows,
    rows_per_block,
)
from .extent import first_chunks, present_chunks
from .keys import Keys
from .page_table import buckets_of
from .pruning import choose_extents
from .row_numbers import entries_of_rows
from .sparse_optim import SparseOptimizer
from .state import NULL_FRAME, ChunkPool, EmbeddingState, FrameArena, PageTable
from .store import EmbeddingStore
from .utility import encode

__all__ = ["FromDenseInfo", "from_dense"]

_NEAREST = 1 << 31  # the salt that makes `utility.encode` round to the nearest


class FromDenseInfo(NamedTuple):
    """What of dense tables a store has room for.

    Attributes:
      kept_keys: rows that are tracked, with chunks or without.
      dropped_keys: rows that are not: their bucket is full of better ones, or with
        `table_sizes` they are worth nothing.
      empty_keys: rows that are tracked and have no chunk.
      kept_chunks: chunks that have a frame.
      dropped_chunks: chunks that have none.
      kept_square: share of the tables' squared L2 norm that the kept chunks hold, 1
        if that norm is 0.
    """

    kept_keys: int
    dropped_keys: int
    empty_keys: int
    kept_chunks: int
    dropped_chunks: int
    kept_square: float


def from_dense(
    tables: PerTable,
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
    *,
    key: jax.Array,
    ids: PerTable | None = None,
    utilities: PerTable | None = None,
) -> tuple[EmbeddingStore, EmbeddingState, FromDenseInfo]:
    """Make a store of trained dense tables and keep their best chunks.

    Every row wants an entry. Where more hash to a bucket than it has ways, those of
    highest utility get one (of a row with several, the highest counts; ties go to lower
    tables, then to lower rows). Of the rows
    with an entry the `config.target_frames` best chunks are kept, as
    `EmbeddingStore.prune_step` would choose among all. Kept chunks hold the values of
    the tables bit for bit, rounded to the nearest with `value_dtype="bfloat16"`, with
    fresh optimizer state. The others come back as any pruned chunk does; with
    `fallback="coarse"` they read the coarse values nearest to theirs. The step is 0.

    A state holds utilities in 16 bits, and what is ranked is what it holds: a
    `prune_step` without training in between moves nothing.

    With `ranking="lengths"` what is kept of a vector is its first chunks, and nothing
    has put what matters there while a dense table was trained; `"chunks"` keeps the
    largest wherever they are.

    Args:
      tables: per table `[num_rows, D]` of float32, bfloat16 or float16, NumPy or JAX,
        D of the table with `config.table_dims`; a sequence, or a dict by table number.
        Tables that are left out start empty.
      config: sizes and rules of the store.
      optimizer: from `fj.sparse` or `fj.rowwise_adagrad`.
      key: a JAX random key, consumed; see `EmbeddingStore.init`.
      ids: per table the ids of its rows, distinct: integers `[num_rows]`, at least 0,
        or `Keys`; `None`, for one table or all, is 0, 1, 2 and on.
      utilities: per table what its rows are worth, finite numbers of at least 0:
        `[num_rows]`, or with `ranking="chunks"` also one per chunk; `None`, for one
        table or all, is the L2 norm of the vector, or of each chunk with
        `ranking="chunks"`. Training adds the scores of `config.scorer` to them: give
        them in its unit, such as access counts for `fj.scorers.frequency()`, if what
        the tables knew shall not be outweighed, or outweigh, at once.

    Returns:
      The store, its state, and a `FromDenseInfo`.

    Raises:
      TypeError: on containers or dtypes that are not as above; float64 tables among
        them, which the store cannot hold exactly.
      ValueError: on shapes that do not fit, more tables than the config has, values or
        utilities that are not finite, negative utilities, and ids that are negative,
        padding, given twice or too wide for `config.id_bits`.

    >>> import fiited_jax as fj
    >>> config = fj.EmbeddingConfig(
    ...     embedding_dim=4, chunk_dim=2, num_entries=32, num_frames=4, headroom=0.0,
    ...     length_alpha=1.0)
    >>> table = np.float32([[3, 4, 1, 1], [0, 1, 0, 0], [6, 8, 2, 2]])
    >>> store, state, info = fj.from_dense(
    ...     [table], config, fj.rowwise_adagrad(0.1), key=jax.random.key(0))
    >>> store.lookup(state, np.arange(3, dtype=np.int32))
    Array([[3., 4., 0., 0.],
           [0., 0., 0., 0.],
           [6., 8., 2., 2.]], dtype=float32)
    >>> info.kept_chunks, info.empty_keys
    (3, 1)

    References:
      arXiv:2401.04408 trains from scratch; this is an addition.
    """
    store = EmbeddingStore(config, optimizer)
    dense = check_tables(tables, config)
    rows, total_square = read_rows(
        dense,
        by_table("ids", ids, dense),
        by_table("utilities", utilities, dense),
        config,
    )
    num_rows = len(rows.table)

    state = store.init(key)
    rows, entries = _place(rows, config)
    pages = _fill_pages(state.pages, entries, rows, config)
    extent, threshold = jax.jit(choose_extents, static_argnums=1)(pages, config)
    chosen = np.asarray(present_chunks(extent[entries], config))
    lengths = np.count_nonzero(chosen, axis=1)
    num_chunks = int(lengths.sum())
    start = np.where(lengths > 0, 1 + np.cumsum(lengths) - lengths, NULL_FRAME)
    pages = dataclasses.replace(
        pages,
        extent=extent,
        start=pages.start.at[entries].set(start.astype(config.start_dtype)),
    )
    pool, kept_square = _fill_pool(state.pool, dense, rows, chosen, config, optimizer)
    if pages.coarse is not None:
        coarse = _fill_coarse(pages.coarse, dense, rows, entries, config)
        pages = dataclasses.replace(pages, coarse=coarse)
    arena = FrameArena(next_frame=jnp.int32(1 + num_chunks), idle=jnp.int32(0))
    state = dataclasses.replace(
        state, threshold=threshold, pages=pages, pool=pool, arena=arena
    )
    is_tracked = np.ones(len(entries), bool)
    if config.table_sizes is not None:
        is_tracked = (lengths > 0) | (rows.utility > 0).any(axis=1)
    num_given = sum(array.size for array in dense.values()) // config.chunk_dim
    num_dropped = num_given - num_chunks
    share = kept_square / total_square if total_square and num_dropped else 1.0
    info = FromDenseInfo(
        kept_keys=int(is_tracked.sum()),
        dropped_keys=num_rows - int(is_tracked.sum()),
        empty_keys=int(np.count_nonzero(is_tracked & (lengths == 0))),
        kept_chunks=num_chunks,
        dropped_chunks=num_dropped,
        kept_square=min(share, 1.0),  # the two sums round differently
    )
    return store, state, info


def _place(rows: Rows, config: EmbeddingConfig) -> tuple[Rows, np.ndarray]:
    """Choose the rows that get an entry: the best W of each bucket, or all.

    Returns:
      Those rows, in their order, and their entries `i32[n]`: the ways that `admit`
      would give them.
    """
    if config.table_sizes is not None:
        return rows, np.asarray(
            entries_of_rows(rows.low, rows.table, config.table_sizes)
        )
    hash_rows = jax.jit(buckets_of, static_argnums=2)
    buckets = np.asarray(
        hash_rows(Keys(rows.low, rows.high), rows.table, config.num_buckets)
    )
    order = np.lexsort((-rows.utility.max(axis=1), buckets))
    kept = np.sort(order[_rank_in_run(buckets[order]) < config.num_ways])
    order = np.argsort(buckets[kept], kind="stable")
    ways = np.empty(len(kept), np.int32)
    ways[order] = _rank_in_run(buckets[kept][order])
    entries = buckets[kept] * np.int32(config.num_ways) + ways
    return Rows(*(column[kept] for column in rows)), entries


def _rank_in_run(values: np.ndarray) -> np.ndarray:
    """Number the elements of each run of equal values from 0."""
    position = np.arange(len(values))
    begins = np.ones(len(values), bool)
    begins[1:] = values[1:] != values[:-1]
    return position - np.maximum.accumulate(np.where(begins, position, 0))


def _fill_pages(
    pages: PageTable, entries: np.ndarray, rows: Rows, config: EmbeddingConfig
) -> PageTable:
    """Write entries, `i32[n]`, of an empty page table, with all of their chunks."""
    key_low, key_high, owner = pages.key_low, pages.key_high, pages.owner
    if key_low is not None:
        key_low = key_low.at[entries].set(rows.low)
    if key_high is not None:
        key_high = key_high.at[entries].set(rows.high)
    if owner is not None:
        owner = owner.at[entries].set((rows.table + 1).astype(owner.dtype))
    codes = encode(jnp.asarray(rows.utility), jnp.uint32(_NEAREST))
    per_entry = pages.utility.reshape(-1, config.num_utilities)
    everything = first_chunks(jnp.int32(config.num_chunks), config)
    return dataclasses.replace(
        pages,
        key_low=key_low,
        key_high=key_high,
        owner=owner,
        extent=pages.extent.at[entries].set(everything),
        utility=per_entry.at[entries].set(codes).reshape(-1),
    )


def _fill_pool(
    pool: ChunkPool,
    dense: Mapping[int, np.ndarray],
    rows: Rows,
    chosen: np.ndarray,
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
) -> tuple[ChunkPool, float]:
    """Write the chosen chunks to consecutive frames, in the order of the rows.

    Returns:
      The pool, and the squared norm of what it holds.
    """
    write = jax.jit(write_fresh, static_argnums=3, donate_argnums=0)
    square, next_frame = 0.0, NULL_FRAME + 1
    most = _rows_at_once(dense, config) * config.num_chunks
    for part, vectors in _blocks(dense, rows, config):
        chunks = vectors.reshape(-1, config.num_chunks, config.chunk_dim)
        kept = chunks[chosen[part]]
        # New arrays each time: the device may not have read the last ones yet.
        values = np.zeros((most, config.chunk_dim), np.float32)
        values[: len(kept)] = kept
        frames = np.full(most, NULL_FRAME, np.int32)
        frames[: len(kept)] = np.arange(next_frame, next_frame + len(kept))
        pool = write(pool, frames, values, optimizer)
        square += float(np.sum(np.square(kept, dtype=np.float64)))
        next_frame += len(kept)
    return pool, square


def _fill_coarse(
    coarse: jax.Array,
    dense: Mapping[int, np.ndarray],
    rows: Rows,
    entries: np.ndarray,
    config: EmbeddingConfig,
) -> jax.Array:
    """Write the coarse values of all rows, those with frames too."""
    codes = np.zeros((config.num_entries, config.coarse_dim), np.uint8)
    for part, vectors in _blocks(dense, rows, config):
        codes[entries[part]] = encode_coarse(jnp.asarray(vectors), config)
    return jnp.asarray(codes.reshape(coarse.shape))


def _rows_at_once(dense: Mapping[int, np.ndarray], config: EmbeddingConfig) -> int:
    longest = max((len(array) for array in dense.values()), default=0)
    return min(rows_per_block(config), longest)


def _blocks(
    dense: Mapping[int, np.ndarray], rows: Rows, config: EmbeddingConfig
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield which rows a block holds, and their vectors `f32[n, D]`."""
    block = max(_rows_at_once(dense, config), 1)
    for number, array in dense.items():
        first, last = np.searchsorted(rows.table, [number, number + 1])
        for begin in range(first, last, block):
            part = slice(begin, min(begin + block, last))
            vectors = array[rows.row[part]].astype(np.float32, copy=False)
            yield part, padded(vectors, config)
