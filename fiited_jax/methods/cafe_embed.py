"""Rows of hot ids and rows that the others share: the embedding module of `cafe`."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ..chunk_pool import read_frames, read_values, write_frames
from ..key_rows import norms
from ..keys import Keys, canonicalize_ids, canonicalize_tables
from ..memory import MemoryReport, count_arrays
from ..sparse_optim import SparseOptimizer
from ..state import NULL_FRAME, ChunkPool
from ..store import Ids, Tables
from .hot_sketch import (
    NO_CELL,
    HotSketch,
    cool,
    find_cells,
    init_sketch,
    insert,
    promote,
)
from .table_embed import TableInfo, TableState, init_rows, row_of_hash, step_rows

__all__ = ["CafeEmbed", "CafeHandle", "CafePruneInfo", "CafeState"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CafeState:
    """The sketch and the rows.

    Attributes:
      sketch: which ids are hot.
      pool: the rows of hot ids in the frames from 1 up, then the shared ones.
    """

    sketch: HotSketch
    pool: ChunkPool


class CafeHandle(NamedTuple):
    """What a batch reads.

    Attributes:
      keys: words `u32[...]`.
      tables: `i32[...]`.
      valid: `bool[...]`, false for padding.
      frames: `i32[...]`.
    """

    keys: Keys
    tables: jax.Array
    valid: jax.Array
    frames: jax.Array


class CafePruneInfo(NamedTuple):
    """What a prune step did.

    Attributes:
      freed: `i32[]` hot ids that became cold.
      granted: `i32[]` 0: ids become hot in updates.
      threshold: `f32[]` the score from which an id is hot.
      frames_used: `i32[]` hot ids.
    """

    freed: jax.Array
    granted: jax.Array
    threshold: jax.Array
    frames_used: jax.Array


class CafeEmbed(nnx.Module):
    """Rows of hot ids, and rows that the others share.

    Attributes:
      state: a `TableState` variable that holds a `CafeState`.
    """

    def __init__(
        self,
        num_hot: int,
        num_shared: int,
        embedding_dim: int,
        optimizer: SparseOptimizer,
        *,
        num_tables: int,
        id_bits: int,
        threshold: float,
        initial_scale: float,
        rngs: nnx.Rngs,
    ) -> None:
        """Allocate sketch and rows.

        Args:
          num_hot: rows of hot ids, and buckets of the sketch.
          num_shared: rows of the others.
          embedding_dim: values per row.
          optimizer: for the rows.
          num_tables: tables of the data.
          id_bits: 32 or 64; wider ids than that read shared rows and stay cold.
          threshold: score from which an id is hot; a lookup adds 1 on average.
          initial_scale: initial values are uniform in
            `[-initial_scale, initial_scale)`.
          rngs: gives the key of the initial values, from its `params` stream.
        """
        self.num_hot, self.num_shared = num_hot, num_shared
        self.embedding_dim, self.optimizer = embedding_dim, optimizer
        self.num_tables, self.threshold = num_tables, threshold
        seed = jax.random.bits(rngs.params(), (2,), jnp.uint32)
        rows = num_hot + num_shared
        state = CafeState(
            sketch=init_sketch(num_hot, num_tables, id_bits),
            pool=init_rows(rows, embedding_dim, optimizer, initial_scale, seed),
        )
        self.state = TableState(state)

    def __call__(self, ids: Ids, *, tables: Tables = 0) -> jax.Array:
        """Look ids up, `f32[..., D]`; writes nothing."""
        return self.gather(self.admit(ids, tables=tables)[0])

    def admit(self, ids: Ids, *, tables: Tables = 0) -> tuple[CafeHandle, None]:
        """Find the frames of ids; what is hot changes in updates alone."""
        keys, valid = canonicalize_ids(ids)
        wide, known = canonicalize_tables(tables, valid.shape, self.num_tables)
        valid &= known
        flat = jax.tree.map(jnp.ravel, (keys, wide, valid))
        cells = find_cells(self._state.sketch, *flat).reshape(valid.shape)
        own = self._state.sketch.frame[jnp.maximum(cells, 0)]
        is_hot = (cells != NO_CELL) & (own != NULL_FRAME)
        frames = jnp.where(is_hot, own, self._shared_frames(keys, wide))
        frames = jnp.where(valid, frames, NULL_FRAME)
        return CafeHandle(keys, wide, valid, frames), None

    def gather(self, handle: CafeHandle) -> jax.Array:
        """Read rows, `f32[..., D]`."""
        return read_values(self._state.pool, handle.frames, self.embedding_dim)

    def apply_gradients(self, handle: CafeHandle, vector_grads: jax.Array) -> TableInfo:
        """Step the rows, score the ids and give hot ones rows of their own.

        The score of a lookup is the norm of its gradient over the mean of all; lookups
        whose gradient is not finite have none.
        """
        keys, tables, valid, frames = jax.tree.map(jnp.ravel, handle)
        grads = vector_grads.reshape(-1, self.embedding_dim).astype(jnp.float32)
        pool, info = step_rows(self._state.pool, frames, grads, self.optimizer)
        lengths = norms(grads)
        scored = valid & jnp.isfinite(lengths) & (lengths > 0)
        lengths = jnp.where(scored, lengths, 0.0)
        mean = jnp.sum(lengths) / jnp.maximum(jnp.sum(scored), 1)
        scores = jnp.where(scored, lengths / mean, 0.0)
        sketch = insert(self._state.sketch, keys, tables, scores, scored)
        cells = find_cells(sketch, keys, tables, scored)
        sketch, own = promote(sketch, cells, self.threshold)
        row = read_frames(pool, self._shared_frames(keys, tables), self.embedding_dim)
        pool = write_frames(pool, own, *row)
        self.state.set_value(CafeState(sketch=sketch, pool=pool))
        return info

    def prune_step(self) -> CafePruneInfo:
        """Decay the scores; ids that fall cold read their shared rows again."""
        state = self._state
        sketch, freed = cool(state.sketch, self.threshold)
        self.state.set_value(CafeState(sketch=sketch, pool=state.pool))
        return CafePruneInfo(
            freed,
            jnp.zeros_like(freed),
            jnp.float32(self.threshold),
            self.num_hot - sketch.num_free,
        )

    def memory_report(self) -> MemoryReport:
        """Count the bytes of the sketch and the rows, by component."""
        sketch, pool = self._state.sketch, self._state.pool
        return MemoryReport(
            keys=count_arrays((sketch.key_low, sketch.key_high, sketch.owner)),
            runs=count_arrays((sketch.frame, sketch.free, sketch.num_free)),
            utilities=count_arrays(sketch.score),
            values=count_arrays(pool.values),
            slots=count_arrays(pool.slots),
            other=count_arrays(sketch.mass),
            num_entries=sketch.score.size,
        )

    def _shared_frames(self, keys: Keys, tables: jax.Array) -> jax.Array:
        return row_of_hash(keys, tables, self.num_shared) + self.num_hot + 1

    @property
    def _state(self) -> CafeState:
        return self.state.get_value()
