"""Rows of several widths, projected to one: the embedding module of `mixed_dim`."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..bidding import find_leaders
from ..chunk_pool import read_values
from ..key_rows import sum_duplicates
from ..keys import canonicalize_ids
from ..memory import MemoryReport, count_arrays
from ..sparse_optim import SparseOptimizer
from ..state import NULL_FRAME, ChunkPool
from ..store import Ids, Tables
from .table_embed import (
    TableInfo,
    TableState,
    init_rows,
    step_summed,
    table_bytes,
)

__all__ = ["MixedDimEmbed", "MixedDimState", "mixed_dim_bytes"]

_NO_PAIR = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedDimState:
    """Rows and projections.

    Attributes:
      rows: per width that occurs, ascending, the rows of the tables of that width.
      projections: the lines of all matrices, table after table; `None` if there are
        none.
    """

    rows: tuple[ChunkPool, ...]  # C is the width
    projections: ChunkPool | None  # C is D


class MixedDimEmbed(nnx.Module):
    """Rows of several widths, by the number of their pair, and projections to D.

    Looking up reads a matrix per id. A handle holds pair numbers, `i32[...]`.

    Attributes:
      state: a `TableState` variable that holds a `MixedDimState`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dims: Sequence[int],
        embedding_dim: int,
        optimizer: SparseOptimizer,
        *,
        initial_scale: float,
        rngs: nnx.Rngs,
    ) -> None:
        """Allocate rows and matrices.

        Rows of width d start uniform in `[-initial_scale, initial_scale)`, matrices in
        `[-sqrt(3 / d), sqrt(3 / d))`: their products have the variance of the rows.

        Args:
          sizes: rows per table; pairs are numbered table after table.
          dims: width per table; rows narrower than D are projected.
          embedding_dim: D, width of the vectors.
          optimizer: for rows and for the lines of matrices.
          initial_scale: of the rows.
          rngs: gives the keys of the initial values, from its `params` stream.
        """
        self.embedding_dim, self.optimizer = embedding_dim, optimizer
        self.sizes, self.dims = tuple(sizes), tuple(dims)
        layout = self._layout

        def draw(num_rows: int, width: int, scale: float | jax.Array) -> ChunkPool:
            seed = jax.random.bits(rngs.params(), (2,), jnp.uint32)
            return init_rows(num_rows, width, optimizer, scale, seed)

        rows = tuple(
            draw(number, width, initial_scale)
            for width, number in zip(layout.widths, layout.num_rows, strict=True)
        )
        narrow = np.array([dim for dim in self.dims if dim < embedding_dim], np.int32)
        scales = jnp.sqrt(3.0 / jnp.asarray(np.repeat(narrow, narrow), jnp.float32))
        projections = None
        if scales.size:
            projections = draw(scales.size, embedding_dim, scales[:, None])
        self.state = TableState(MixedDimState(rows=rows, projections=projections))

    def __call__(self, ids: Ids, *, tables: Tables = 0) -> jax.Array:
        """Look pair numbers up, `f32[..., D]`; writes nothing."""
        return self.gather(self.admit(ids)[0])

    def admit(self, ids: Ids, *, tables: Tables = 0) -> tuple[jax.Array, None]:
        """Return pair numbers, -1 for none; nothing is admitted."""
        keys, valid = canonicalize_ids(ids)
        return jnp.where(valid, keys.low.astype(jnp.int32), _NO_PAIR), None

    def gather(self, handle: jax.Array) -> jax.Array:
        """Read vectors, `f32[..., D]`."""
        pairs = handle.reshape(-1)
        values = self._read_rows(pairs)
        projected = jnp.einsum("nd,nde->ne", values, self._read_matrices(pairs))
        vectors = jnp.where(self._is_wide(pairs)[:, None], values, projected)
        return vectors.reshape(*handle.shape, self.embedding_dim)

    def apply_gradients(self, handle: jax.Array, vector_grads: jax.Array) -> TableInfo:
        """Step rows and matrices along their summed gradients, where finite."""
        pairs, dim, layout = handle.reshape(-1), self.embedding_dim, self._layout
        grads = vector_grads.reshape(-1, dim).astype(jnp.float32)
        back = jnp.einsum("ne,nde->nd", grads, self._read_matrices(pairs))
        row_grads = jnp.where(self._is_wide(pairs)[:, None], grads, back)
        leaders = find_leaders(pairs, pairs != _NO_PAIR)
        summed = sum_duplicates(leaders, row_grads)
        leads = leaders == jnp.arange(pairs.size)
        rows, infos = [], []
        for group, width in enumerate(layout.widths):
            frames = self._frames(jnp.where(leads, pairs, _NO_PAIR), group)
            pool, info = step_summed(
                self._state.rows[group], frames, summed[:, :width], self.optimizer
            )
            rows.append(pool)
            infos.append(info)
        projections = self._state.projections
        if projections is not None:
            tables = self._tables(pairs)
            terms = self._read_rows(pairs)[:, :, None] * grads[:, None, :]
            sums = jnp.zeros((len(self.sizes), dim, dim), jnp.float32)
            sums = sums.at[tables].add(terms, mode="drop")
            touched = jnp.zeros(len(self.sizes), bool).at[tables].set(True, mode="drop")
            lines = jnp.where(touched[:, None], layout.lines, NULL_FRAME).reshape(-1)
            projections, info = step_summed(
                projections, lines, sums.reshape(-1, dim), self.optimizer
            )
            infos.append(info)
        self.state.set_value(MixedDimState(rows=tuple(rows), projections=projections))
        return jax.tree.map(lambda *counts: sum(counts), *infos)

    def prune_step(self) -> None:
        """Nothing is pruned."""

    def memory_report(self) -> MemoryReport:
        """Count the bytes of rows and matrices and of their optimizer state."""
        pools = jax.tree.leaves(self._state, is_leaf=lambda x: isinstance(x, ChunkPool))
        return MemoryReport(
            values=count_arrays([pool.values for pool in pools]),
            slots=count_arrays([pool.slots for pool in pools]),
        )

    def _tables(self, pairs: jax.Array) -> jax.Array:
        """Return the table of each pair, T for none."""
        ends = jnp.asarray(np.cumsum(self.sizes), jnp.int32)
        tables = jnp.searchsorted(ends, pairs, side="right").astype(jnp.int32)
        return jnp.where(pairs == _NO_PAIR, len(self.sizes), tables)

    def _is_wide(self, pairs: jax.Array) -> jax.Array:
        is_wide = jnp.asarray(np.equal(self.dims, self.embedding_dim))
        return is_wide.at[self._tables(pairs)].get(mode="fill", fill_value=True)

    def _frames(self, pairs: jax.Array, group: int) -> jax.Array:
        """Return the frames of the pairs whose rows have a width, for others none."""
        tables, layout = self._tables(pairs), self._layout
        groups = jnp.asarray(layout.groups).at[tables].get(mode="fill", fill_value=-1)
        shifts = jnp.asarray(layout.shifts).at[tables].get(mode="fill", fill_value=0)
        return jnp.where(groups == group, pairs + shifts, NULL_FRAME)

    def _read_rows(self, pairs: jax.Array) -> jax.Array:
        """Read rows, filled up with zeros: `f32[N, D]`."""
        values = jnp.zeros((pairs.size, self.embedding_dim), jnp.float32)
        for group, width in enumerate(self._layout.widths):
            pool = self._state.rows[group]
            part = read_values(pool, self._frames(pairs, group), width)
            values = values.at[:, :width].add(part)
        return values

    def _read_matrices(self, pairs: jax.Array) -> jax.Array:
        """Read the matrix of each pair, filled up with zeros: `f32[N, D, D]`."""
        projections, dim = self._state.projections, self.embedding_dim
        if projections is None:
            return jnp.zeros((pairs.size, dim, dim), jnp.float32)
        matrices = read_values(projections, jnp.asarray(self._layout.lines), dim)
        return matrices.at[self._tables(pairs)].get(mode="fill", fill_value=0.0)

    @property
    def _layout(self) -> "_Layout":
        return _lay_out(self.sizes, self.dims, self.embedding_dim)

    @property
    def _state(self) -> MixedDimState:
        return self.state.get_value()


class _Layout(NamedTuple):
    """Where rows and lines are, on the host; T tables.

    Attributes:
      widths: those that occur, ascending.
      num_rows: how many rows each has.
      groups: `i32[T]` which of them a table has.
      shifts: `i32[T]` what takes a pair's number to its frame.
      lines: `i32[T, D]` frames of a matrix, `NULL_FRAME` beyond its lines.
    """

    widths: tuple[int, ...]
    num_rows: tuple[int, ...]
    groups: np.ndarray
    shifts: np.ndarray
    lines: np.ndarray


@functools.lru_cache
def _lay_out(sizes: tuple[int, ...], dims: tuple[int, ...], full: int) -> _Layout:
    kinds = tuple(sorted(set(dims)))
    num_rows, num_lines, num_pairs = [0] * len(kinds), 0, 0
    groups, shifts = [], []
    lines = np.full((len(sizes), full), NULL_FRAME, np.int32)
    for table, (size, dim) in enumerate(zip(sizes, dims, strict=True)):
        group = kinds.index(dim)
        groups.append(group)
        shifts.append(num_rows[group] + 1 - num_pairs)
        num_rows[group] += size
        num_pairs += size
        if dim < full:
            lines[table, :dim] = np.arange(dim) + num_lines + 1
            num_lines += dim
    return _Layout(
        kinds,
        tuple(num_rows),
        np.array(groups, np.int32),
        np.array(shifts, np.int32),
        lines,
    )


def mixed_dim_bytes(
    sizes: Sequence[int],
    dims: Sequence[int],
    embedding_dim: int,
    optimizer: SparseOptimizer,
) -> int:
    """Return the bytes of a `MixedDimEmbed`."""
    layout = _lay_out(tuple(sizes), tuple(dims), embedding_dim)
    total = sum(
        table_bytes(number, width, optimizer)
        for width, number in zip(layout.widths, layout.num_rows, strict=True)
    )
    num_lines = sum(dim for dim in dims if dim < embedding_dim)
    return total + (
        table_bytes(num_lines, embedding_dim, optimizer) if num_lines else 0
    )
