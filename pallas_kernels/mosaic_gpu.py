"""Kernels for NVIDIA GPUs from Hopper on, by Pallas Mosaic GPU.

It copies pieces of 128 bytes and multiples of that, between global and shared memory:
chunks of 32 float32 values up can be read by it, and narrower ones not.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .reference import NULL_FRAME

__all__ = ["gather_chunks"]

_PIECE_BYTES = 128
_MOST_VALUES = 256  # of one axis of a copy
_BLOCK_BYTES = 1 << 16  # of shared memory


def gather_chunks(
    pool: jax.Array, frames: jax.Array, chunk_dim: int, *, interpret: Any = False
) -> jax.Array:
    """Read `pool[frames]`; see `pallas_kernels.api.gather_chunks`.

    The null frame is read like any other: it stays in the cache.

    Args:
      pool: `[P * C]` or lines `[L, w]`.
      frames: `i32[...]`.
      chunk_dim: C, at most 256, so that a chunk has a multiple of 128 bytes.
      interpret: as for `plgpu.kernel`.

    Returns:
      `[..., C]`.

    Raises:
      NotImplementedError: on another C.
    """
    num_bytes = chunk_dim * pool.dtype.itemsize
    if num_bytes % _PIECE_BYTES or chunk_dim > _MOST_VALUES:
        raise NotImplementedError(
            f"implementation='mosaic_gpu' needs chunk_dim of at most {_MOST_VALUES} "
            f"and chunks of a multiple of {_PIECE_BYTES} bytes, got chunk_dim "
            f"{chunk_dim} and {num_bytes} bytes"
        )
    flat = frames.reshape(-1)
    block = min(_BLOCK_BYTES // num_bytes, _MOST_VALUES)
    num_blocks = -(-flat.size // block)
    if not num_blocks:
        return jnp.zeros((*frames.shape, chunk_dim), pool.dtype)
    missing = num_blocks * block - flat.size
    padded = jnp.pad(flat, (0, missing), constant_values=NULL_FRAME)
    chunks = plgpu.kernel(
        _gather_block,
        out_type=jax.ShapeDtypeStruct((padded.size, chunk_dim), pool.dtype),
        grid=(num_blocks,),
        grid_names=("block",),
        scratch_types=[
            plgpu.SMEM((block, chunk_dim), pool.dtype),
            plgpu.Barrier(num_arrivals=block),
        ],
        interpret=interpret or None,
        kernel_name="gather_chunks",
    )(padded, pool.reshape(-1, chunk_dim))
    return chunks[: flat.size].reshape(*frames.shape, chunk_dim)


def _gather_block(frames: Any, pool: Any, chunks: Any, rows: Any, arrival: Any) -> None:
    """Read the chunks of a block, all copies in flight at once.

    Args:
      frames: `i32[n]`.
      pool: `[P, C]`.
      chunks: `[n, C]`, to be written.
      rows: `[B, C]` of shared memory.
      arrival: a barrier that B copies arrive at.
    """
    block = rows.shape[0]
    first = lax.axis_index("block") * block

    def start(row: Any, _: None) -> None:
        plgpu.copy_gmem_to_smem(
            pool.at[pl.ds(frames[first + row], 1)], rows.at[pl.ds(row, 1)], arrival
        )

    lax.fori_loop(0, block, start, None)
    plgpu.barrier_wait(arrival)
    plgpu.copy_smem_to_gmem(rows, chunks.at[pl.ds(first, block)])
    plgpu.wait_smem_to_gmem(0)
