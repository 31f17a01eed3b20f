"""A row per key: what the lanes of a batch that hold one key come to.

Keys are often few against lanes, so what is done per key works on blocks of rows, as
many as there are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .bidding import lanes_of_rows, rank_of
from .config import EmbeddingConfig

__all__ = ["KeyBlock", "KeyRows", "norms", "sum_duplicates", "sum_rows"]

_BLOCKS = 32


class KeyRows(NamedTuple):
    """A row per key of the batch, in the order of their leaders, padded to blocks.

    Attributes:
      count: `i32[]` how many rows there are.
      lane: `i32[R]` the leader.
      times: `f32[R]` how often the key occurs.
      grad: `f32[R, K, C]` sum of its gradients.
      sum_of_norms: `f32[R, U]`.
    """

    count: jax.Array
    lane: jax.Array
    times: jax.Array
    grad: jax.Array
    sum_of_norms: jax.Array

    @property
    def block_size(self) -> int:
        """Rows per block."""
        return self.lane.size // _BLOCKS

    def part(self, block: jax.Array) -> "KeyBlock":
        """Return a block of rows."""
        first = block * self.block_size
        parts = [
            lax.dynamic_slice_in_dim(array, first, self.block_size)
            for array in (self.lane, self.times, self.grad, self.sum_of_norms)
        ]
        is_row = first + lax.iota(jnp.int32, self.block_size) < self.count
        return KeyBlock(is_row, *parts)


class KeyBlock(NamedTuple):
    """A block of `KeyRows`, and which of its rows there are."""

    is_row: jax.Array
    lane: jax.Array
    times: jax.Array
    grad: jax.Array
    sum_of_norms: jax.Array


def sum_rows(leaders: jax.Array, grads: jax.Array, config: EmbeddingConfig) -> KeyRows:
    """Sum the gradients of duplicates.

    Args:
      leaders: `i32[N]` from `bidding.find_leaders`.
      grads: `[N, K, C]`.
      config: sizes and rules.

    Returns:
      A row for each leader.
    """
    num_lanes = leaders.size
    leads = leaders == lax.iota(jnp.int32, num_lanes)
    rank, count = rank_of(leads)
    padded = max(-(-num_lanes // _BLOCKS), 1) * _BLOCKS
    row = rank.at[leaders].get(mode="fill", fill_value=padded)
    flat = grads.reshape(num_lanes, config.embedding_dim).astype(jnp.float32)
    summed = _add_rows(jnp.zeros((padded, flat.shape[1]), jnp.float32), row, flat)
    width = config.embedding_dim // config.num_utilities
    lengths = norms(flat.reshape(num_lanes, config.num_utilities, width))
    sums = jnp.zeros((padded, config.num_utilities), jnp.float32)
    return KeyRows(
        count=count,
        lane=lanes_of_rows(rank, leads, padded),
        times=jnp.zeros(padded, jnp.float32).at[row].add(1.0, mode="drop"),
        grad=summed.reshape(padded, *grads.shape[1:]),
        sum_of_norms=sums.at[row].add(lengths, mode="drop"),
    )


def _add_rows(sums: jax.Array, rows: jax.Array, terms: jax.Array) -> jax.Array:
    """Return `sums.at[rows].add(terms, mode="drop")` for `f32[R, D]`.

    Spelled out: XLA:CPU copies `terms` to another layout for the short form.
    """
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=(0,),
    )
    drop = lax.GatherScatterMode.FILL_OR_DROP
    return lax.scatter_add(sums, rows[:, None], terms[:, None, :], numbers, mode=drop)


def sum_duplicates(leaders: jax.Array, terms: jax.Array) -> jax.Array:
    """Sum the terms of duplicates into their leader's row.

    Args:
      leaders: `i32[N]` from `bidding.find_leaders`.
      terms: `f32[N, ...]`.

    Returns:
      `f32[N, ...]` the sums, zeros in rows that lead nothing.
    """
    return jnp.zeros_like(terms).at[leaders].add(terms, mode="drop")


def norms(vectors: jax.Array) -> jax.Array:
    """Return the L2 norms over the last axis."""
    return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1))
