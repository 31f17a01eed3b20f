"""Ids that are numbers of rows: entries one after another, table after table."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["entries_of_rows", "rows_of_entries", "within_sizes"]


def within_sizes(
    rows: jax.Array, tables: jax.Array, table_sizes: tuple[int, ...]
) -> jax.Array:
    """Tell which rows there are.

    Args:
      rows: `u32[...]`.
      tables: `i32[...]`; -1 is none.
      table_sizes: rows of each table.

    Returns:
      `bool[...]`.

    >>> within_sizes(jnp.uint32([1, 2, 0]), jnp.int32([0, 0, -1]), (2, 3))
    Array([ True, False, False], dtype=bool)
    """
    sizes = jnp.asarray(table_sizes, jnp.uint32)[jnp.maximum(tables, 0)]
    return (tables >= 0) & (rows < sizes)


def entries_of_rows(
    rows: jax.Array, tables: jax.Array, table_sizes: tuple[int, ...]
) -> jax.Array:
    """Return the entries of rows that there are, `i32[...]`; of others, any.

    >>> entries_of_rows(jnp.uint32([1, 2]), jnp.int32([0, 1]), (2, 3))
    Array([1, 4], dtype=int32)
    """
    first = jnp.asarray(np.cumsum((0, *table_sizes[:-1])), jnp.int32)
    return first[jnp.maximum(tables, 0)] + rows.astype(jnp.int32)


def rows_of_entries(
    entries: jax.Array, table_sizes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Return the rows `u32[n]` and tables `i32[n]` of entries in range.

    >>> rows_of_entries(jnp.int32([1, 4]), (2, 0, 3))
    (Array([1, 2], dtype=uint32), Array([0, 2], dtype=int32))
    """
    ends = jnp.asarray(np.cumsum(table_sizes), jnp.int32)
    # How many tables end at or before an entry: they are few, entries are many.
    tables = jnp.zeros_like(entries)
    tables = lax.fori_loop(
        0, len(table_sizes) - 1, lambda t, count: count + (entries >= ends[t]), tables
    )
    first = ends[tables] - jnp.asarray(table_sizes, jnp.int32)[tables]
    return (entries - first).astype(jnp.uint32), tables
