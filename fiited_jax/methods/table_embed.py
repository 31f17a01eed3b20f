"""A plain table with sparse updates: what the baselines are made of.

It shares the pool, the optimizers and the summing of duplicates with the store, so
that a comparison compares methods and nothing else.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ..bidding import find_leaders
from ..chunk_pool import (
    init_pool,
    initial_values,
    read_values,
    update_frames,
    write_fresh,
)
from ..key_rows import norms, sum_duplicates
from ..keys import Keys, canonicalize_ids, canonicalize_tables, hash_words
from ..memory import MemoryReport, count_arrays
from ..sizes import FrameKind
from ..sparse_optim import SparseOptimizer
from ..state import NULL_FRAME, ChunkPool
from ..store import Ids, Tables

__all__ = [
    "TableEmbed",
    "TableInfo",
    "TableState",
    "init_rows",
    "row_kind",
    "row_of_hash",
    "rows_within",
    "step_rows",
    "step_summed",
    "table_bytes",
]


class TableState(nnx.Variable):
    """Holds the `ChunkPool` of a table; no `nnx.Param`."""


class TableInfo(NamedTuple):
    """Counters of an update.

    Attributes:
      updated: `i32[]` rows stepped.
      non_finite: `i32[]` rows left alone because their gradient is not finite.
    """

    updated: jax.Array
    non_finite: jax.Array


class TableEmbed(nnx.Module):
    """Rows of a table, by row number or by hash.

    Frame r + 1 of a pool whose chunks are rows holds row r; the null frame is what
    padding and unknown ids read.

    Attributes:
      state: a `TableState` variable that holds the pool.
    """

    def __init__(
        self,
        num_rows: int,
        embedding_dim: int,
        optimizer: SparseOptimizer,
        *,
        initial_scale: float,
        hashed: bool,
        rngs: nnx.Rngs,
    ) -> None:
        """Allocate the rows.

        Args:
          num_rows: rows.
          embedding_dim: values per row.
          optimizer: for the rows.
          initial_scale: initial values are uniform in
            `[-initial_scale, initial_scale)`.
          hashed: ids are hashed to rows; else they are row numbers, negative for
            none.
          rngs: gives the key of the initial values, from its `params` stream.
        """
        self.num_rows, self.embedding_dim = num_rows, embedding_dim
        self.optimizer, self.hashed = optimizer, hashed
        seed = jax.random.bits(rngs.params(), (2,), jnp.uint32)
        pool = init_rows(num_rows, embedding_dim, optimizer, initial_scale, seed)
        self.state = TableState(pool)

    def __call__(self, ids: Ids, *, tables: Tables = 0) -> jax.Array:
        """Look ids up, `f32[..., D]`; writes nothing."""
        return self.gather(self._frames(ids, tables))

    def admit(self, ids: Ids, *, tables: Tables = 0) -> tuple[jax.Array, None]:
        """Return the frames of ids, `i32[...]`; nothing is admitted to a table."""
        return self._frames(ids, tables), None

    def gather(self, handle: jax.Array) -> jax.Array:
        """Read rows, `f32[..., D]`."""
        return read_values(self._pool, handle, self.embedding_dim)

    def apply_gradients(self, handle: jax.Array, vector_grads: jax.Array) -> TableInfo:
        """Step rows along the sums of their gradients, those that are finite."""
        grads = vector_grads.reshape(-1, self.embedding_dim)
        pool, info = step_rows(self._pool, handle.reshape(-1), grads, self.optimizer)
        self.state.set_value(pool)
        return info

    def prune_step(self) -> None:
        """Nothing is pruned."""

    def memory_report(self) -> MemoryReport:
        """Count the bytes of the rows and their optimizer state."""
        pool = self._pool
        return MemoryReport(
            values=count_arrays(pool.values), slots=count_arrays(pool.slots)
        )

    def _frames(self, ids: Ids, tables: Tables) -> jax.Array:
        keys, valid = canonicalize_ids(ids)
        if not self.hashed:
            return jnp.where(valid, keys.low.astype(jnp.int32) + 1, NULL_FRAME)
        wide, _ = canonicalize_tables(tables, valid.shape, 1 << 30)
        row = row_of_hash(keys, wide, self.num_rows)
        return jnp.where(valid, row + 1, NULL_FRAME)

    @property
    def _pool(self) -> ChunkPool:
        return self.state.get_value()


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def init_rows(
    num_rows: int,
    embedding_dim: int,
    optimizer: SparseOptimizer,
    scale: float | jax.Array,
    seed: jax.Array,
) -> ChunkPool:
    """Allocate rows in the frames from 1 up.

    Args:
      num_rows: rows.
      embedding_dim: values per row.
      optimizer: for the rows.
      scale: initial values are uniform in `[-scale, scale)`; or `f32[num_rows, 1]`.
      seed: `u32[2]`.

    Returns:
      A pool of `num_rows + 1` frames.
    """
    pool = init_pool(num_rows + 1, embedding_dim, optimizer)
    rows = jnp.arange(1, num_rows + 1, dtype=jnp.int32)
    words = Keys(rows.astype(jnp.uint32), jnp.zeros_like(rows, jnp.uint32))
    nothing = jnp.zeros_like(rows)
    values = initial_values(seed, words, nothing, nothing, embedding_dim, 1.0) * scale
    return write_fresh(pool, rows, values, optimizer)


def row_of_hash(keys: Keys, tables: jax.Array, num_rows: int) -> jax.Array:
    """Return the row of each key among those that ids share, `i32[...]`."""
    mixed = hash_words(keys.low, keys.high, tables)
    return (mixed % jnp.uint32(num_rows)).astype(jnp.int32)


def step_rows(
    pool: ChunkPool, frames: jax.Array, grads: jax.Array, optimizer: SparseOptimizer
) -> tuple[ChunkPool, TableInfo]:
    """Step rows along the sums of their gradients, those that are finite.

    Args:
      pool: the rows.
      frames: `i32[N]`; `NULL_FRAME` is not stepped.
      grads: `[N, C]`.
      optimizer: for the rows.

    Returns:
      The pool, updated, and counters.
    """
    leaders = find_leaders(frames, frames != NULL_FRAME)
    summed = sum_duplicates(leaders, grads.astype(jnp.float32))
    leads = leaders == jnp.arange(frames.size)
    return step_summed(pool, jnp.where(leads, frames, NULL_FRAME), summed, optimizer)


def step_summed(
    pool: ChunkPool, frames: jax.Array, grads: jax.Array, optimizer: SparseOptimizer
) -> tuple[ChunkPool, TableInfo]:
    """Step rows whose gradients, `f32[n, C]`, are summed: distinct `i32[n]` frames."""
    is_row = frames != NULL_FRAME
    steps = is_row & jnp.isfinite(norms(grads))
    pool, is_sound = update_frames(
        pool, jnp.where(steps, frames, NULL_FRAME), grads, optimizer
    )
    steps &= is_sound
    return pool, TableInfo(jnp.sum(steps), jnp.sum(is_row & ~steps))


def table_bytes(num_rows: int, embedding_dim: int, optimizer: SparseOptimizer) -> int:
    """Return the bytes of a `TableEmbed`, the null frame and padding included."""
    return row_kind(embedding_dim, optimizer).bytes_of(num_rows + 1)


def rows_within(num_bytes: int, embedding_dim: int, optimizer: SparseOptimizer) -> int:
    """Return the most rows of a `TableEmbed` that fit, 0 if none does."""
    kind = row_kind(embedding_dim, optimizer)
    num_frames = kind.most_within(num_bytes)
    return num_frames - 1 if kind.bytes_of(num_frames) <= num_bytes else 0


@functools.lru_cache
def row_kind(embedding_dim: int, optimizer: SparseOptimizer) -> FrameKind:
    """Return what a row takes: its values and its slots."""
    return FrameKind(embedding_dim, 4, optimizer.slot_specs(embedding_dim))
