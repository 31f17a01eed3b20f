"""Memory: every byte of a state, by component, and what a dense table would take."""

import dataclasses
import math

import jax
import numpy as np

from .config import EmbeddingConfig
from .sparse_optim import SparseOptimizer
from .state import EMPTY_TABLE, NULL_FRAME, EmbeddingState

__all__ = ["MemoryReport", "TableUse", "count_bytes", "dense_bytes", "memory_report"]


_COMPONENTS = (
    "keys",
    "frame_numbers",
    "utilities",
    "values",
    "slots",
    "free_list",
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
    """Bytes of a state.

    Attributes:
      keys: id words, table numbers and last steps.
      frame_numbers: where chunks are.
      utilities: what chunks are worth.
      values: the pool.
      slots: the optimizer's state.
      free_list: free frames and their count.
      other: step and seed.
      all_in_bytes: the sum of the above.
      dense_bytes: a dense table of `num_ids` rows with the same optimizer; `None`
        without `num_ids`.
      all_in_ratio: dense bytes over all-in bytes, optimizers counted in both.
      values_ratio: dense values over pool values, nothing else counted.
      tables: use per table; empty in a prediction.
    """

    keys: int
    frame_numbers: int
    utilities: int
    values: int
    slots: int
    free_list: int
    other: int
    all_in_bytes: int
    dense_bytes: int | None
    all_in_ratio: float | None
    values_ratio: float | None
    tables: tuple[TableUse, ...] = ()

    def components(self) -> dict[str, int]:
        """Return the bytes that sum to `all_in_bytes`, by name."""
        return {name: getattr(self, name) for name in _COMPONENTS}


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


def count_bytes(
    state: EmbeddingState,
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
    num_ids: int | None = None,
) -> MemoryReport:
    """Count the bytes of arrays, or of shapes alone, by component.

    Args:
      state: a state, or what `jax.eval_shape` makes of one.
      config: sizes and rules.
      optimizer: whose state the dense table would have.
      num_ids: rows of the dense table to compare with.

    Returns:
      A `MemoryReport` without tables.

    Raises:
      ValueError: if `num_ids` is not positive.
    """
    if num_ids is not None and num_ids < 1:
        raise ValueError(f"num_ids must be at least 1, got {num_ids}")
    pages = state.pages
    all_in, values = _bytes(state), _bytes(state.pool.values)
    dense = all_in_ratio = values_ratio = None
    if num_ids is not None:
        dense = dense_bytes(num_ids, config.embedding_dim, optimizer)
        all_in_ratio = dense / all_in
        values_ratio = 4 * num_ids * config.embedding_dim / values
    return MemoryReport(
        keys=_bytes((pages.key_low, pages.key_high, pages.table, pages.last_step)),
        frame_numbers=_bytes(pages.frames),
        utilities=_bytes(pages.utility),
        values=values,
        slots=_bytes(state.pool.slots),
        free_list=_bytes(state.free),
        other=_bytes((state.step, state.seed)),
        all_in_bytes=all_in,
        dense_bytes=dense,
        all_in_ratio=all_in_ratio,
        values_ratio=values_ratio,
    )


def memory_report(
    state: EmbeddingState,
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
    num_ids: int | None = None,
) -> MemoryReport:
    """Count the live arrays and the use per table; see `EmbeddingStore`."""
    report = count_bytes(state, config, optimizer, num_ids)
    owners = np.asarray(state.pages.table)
    lengths = np.asarray(state.pages.frames).reshape(-1, config.num_chunks)
    lengths = np.count_nonzero(lengths != NULL_FRAME, axis=1)
    tracked = owners != EMPTY_TABLE
    shape = config.num_tables
    entries = np.bincount(owners[tracked], minlength=shape)
    frames = np.bincount(owners[tracked], lengths[tracked], minlength=shape)
    tables = tuple(
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
    return dataclasses.replace(report, tables=tables)


def _bytes(tree: object) -> int:
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )
