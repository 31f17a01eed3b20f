"""Memory: every byte of a state, by component, and what a dense table would take."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from .config import EmbeddingConfig
from .extent import num_present
from .page_table import NO_TABLE, all_tables
from .sparse_optim import SparseOptimizer
from .state import EmbeddingState

__all__ = [
    "MemoryReport",
    "TableUse",
    "count_arrays",
    "count_bytes",
    "dense_bytes",
    "table_uses",
]


_COMPONENTS = (
    "keys",
    "runs",
    "utilities",
    "values",
    "slots",
    "coarse",
    "shared",
    "filter",
    "other",
)


@dataclasses.dataclass(frozen=True)
class TableUse:
    """What one table holds.

    Attributes:
      table: its number.
      entries: keys tracked.
      frames: frames owned.
      mean_length: values per tracked key.
    """

    table: int
    entries: int
    frames: int
    mean_length: float


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Bytes of an embedding state, by component.

    Attributes:
      keys: id words and table numbers.
      runs: which chunks there are, and where.
      utilities: what they are worth.
      values: the pool.
      slots: the optimizer's state.
      coarse: values of 4 bits and their optimizer state of 4 bits.
      shared: the shared pool and its optimizer state.
      filter: the admission filter.
      other: scalars.
      num_entries: keys that can be tracked; 0 for a method without a page table.
      dense_bytes: a dense table with the same optimizer; `None` if there is nothing
        to compare with.
      dense_values_bytes: the values of that table alone.
      unpruned_values: those of `values` that are not pruned, for a method that trains
        more than it keeps; `None` for the others.
      tables: use per table; empty in a prediction.
    """

    keys: int = 0
    runs: int = 0
    utilities: int = 0
    values: int = 0
    slots: int = 0
    coarse: int = 0
    shared: int = 0
    filter: int = 0
    other: int = 0
    num_entries: int = 0
    dense_bytes: int | None = None
    dense_values_bytes: int | None = None
    unpruned_values: int | None = None
    tables: tuple[TableUse, ...] = ()

    @property
    def components(self) -> dict[str, int]:
        """The bytes that sum to `all_in_bytes`, by name."""
        return {name: getattr(self, name) for name in _COMPONENTS}

    @property
    def all_in_bytes(self) -> int:
        """Every array of the state, optimizer slots included."""
        return sum(self.components.values())

    @property
    def bytes_per_entry(self) -> float | None:
        """What it takes to track a key, its values and slots not counted."""
        if not self.num_entries:
            return None
        return (self.keys + self.runs + self.utilities) / self.num_entries

    @property
    def metadata_share(self) -> float:
        """Share of the all-in bytes that holds neither values nor slots."""
        held = self.values + self.slots + self.coarse + self.shared
        return 1 - held / self.all_in_bytes

    @property
    def all_in_ratio(self) -> float | None:
        """Dense bytes over all-in bytes; optimizers counted in both."""
        return self.dense_bytes and self.dense_bytes / self.all_in_bytes

    @property
    def kept_values(self) -> int:
        """The values that are left in the end: the pool, or what is unpruned of it.

        Coarse values, half of their bytes, count too.
        """
        pool = self.values if self.unpruned_values is None else self.unpruned_values
        return pool + self.coarse // 2

    @property
    def values_ratio(self) -> float | None:
        """Dense values over kept values; nothing else counted."""
        return self.dense_values_bytes and self.dense_values_bytes / self.kept_values

    def __str__(self) -> str:
        """Return a table: bytes by component, and what they come to."""
        rows = [(name, f"{size:,}") for name, size in self.components.items()]
        rows.append(("all-in", f"{self.all_in_bytes:,}"))
        rows.append(("share of metadata", f"{self.metadata_share:.1%}"))
        if self.bytes_per_entry is not None:
            rows.append(("bytes per entry", f"{self.bytes_per_entry:g}"))
        if self.dense_bytes is not None:
            rows.append(("dense", f"{self.dense_bytes:,}"))
            rows.append(("compression, all-in", f"{self.all_in_ratio:.2f}"))
            rows.append(("compression, values only", f"{self.values_ratio:.2f}"))
        return "\n".join(f"{name:<24} {value:>16}" for name, value in rows)

    def against_dense(
        self,
        num_ids: int | Sequence[int],
        embedding_dim: int | Sequence[int],
        optimizer: SparseOptimizer,
    ) -> "MemoryReport":
        """Return the report, compared with dense tables.

        Args:
          num_ids: rows, distinct (table, id) pairs; one number for all tables
            together, or one per table.
          embedding_dim: D, values per row; one number, or one per table.
          optimizer: applied to whole rows.

        Returns:
          A `MemoryReport` with `dense_bytes`.

        Raises:
          ValueError: if there are no rows, or one number for all stands beside
            dimensions that differ.
        """
        rows = [num_ids] if isinstance(num_ids, int | np.integer) else list(num_ids)
        for number in rows:
            if not isinstance(number, int | np.integer) or isinstance(number, bool):
                raise TypeError(f"num_ids must be integers, got {number!r}")
        dims = [embedding_dim] if isinstance(embedding_dim, int) else [*embedding_dim]
        if (len(rows) == 1 and len(set(dims)) == 1) or len(dims) == 1:
            dims = dims[:1] * len(rows)
        if len(rows) != len(dims):
            raise ValueError(
                f"num_ids must be given for each of {len(dims)} tables, or for all if "
                f"their dimensions are one; got {num_ids}"
            )
        if min(rows, default=0) < 0 or sum(rows) < 1:
            raise ValueError(f"num_ids must be at least 1, got {num_ids}")
        rows = [int(number) for number in rows]
        pairs = list(zip(rows, dims, strict=True))
        return dataclasses.replace(
            self,
            dense_bytes=sum(dense_bytes(n, dim, optimizer) for n, dim in pairs),
            dense_values_bytes=sum(4 * n * dim for n, dim in pairs),
        )


def dense_bytes(num_ids: int, embedding_dim: int, optimizer: SparseOptimizer) -> int:
    """Count a dense table of vectors and its optimizer state.

    Args:
      num_ids: rows.
      embedding_dim: D, values per row.
      optimizer: applied to whole rows.

    Returns:
      Bytes.

    >>> import optax
    >>> from fiited_jax import sparse_optim
    >>> dense_bytes(10, 16, sparse_optim.sparse(optax.sgd(0.1)))
    640
    """
    slots = sum(spec.num_bytes for spec in optimizer.slot_specs(embedding_dim))
    return num_ids * (4 * embedding_dim + slots)


def count_arrays(tree: Any) -> int:
    """Return the bytes of all arrays, or of the shapes that `jax.eval_shape` gives."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def count_bytes(state: EmbeddingState, config: EmbeddingConfig) -> MemoryReport:
    """Count a state, or what `jax.eval_shape` makes of one, by component."""
    pages = state.pages
    return MemoryReport(
        keys=count_arrays((pages.key_low, pages.key_high, pages.owner)),
        runs=count_arrays((pages.extent, pages.start)),
        utilities=count_arrays(pages.utility),
        values=count_arrays(state.pool.values),
        slots=count_arrays(state.pool.slots),
        coarse=count_arrays(pages.coarse),
        shared=count_arrays(state.shared),
        filter=count_arrays(state.doorkeeper),
        other=count_arrays(
            (state.step, state.decayed_at, state.threshold, state.seed, state.arena)
        ),
        num_entries=config.num_entries,
    )


def table_uses(state: EmbeddingState, config: EmbeddingConfig) -> tuple[TableUse, ...]:
    """Count what each table holds, on the host."""
    owners = np.asarray(all_tables(state.pages))
    lengths = np.asarray(num_present(state.pages.extent, config))
    tracked = owners != NO_TABLE
    entries = np.bincount(owners[tracked], minlength=config.num_tables)
    frames = np.bincount(owners[tracked], lengths[tracked], minlength=config.num_tables)
    return tuple(
        TableUse(
            table=table,
            entries=int(entries[table]),
            frames=int(frames[table]),
            mean_length=float(
                frames[table] * config.chunk_dim / max(entries[table], 1)
            ),
        )
        for table in range(config.num_tables)
    )
