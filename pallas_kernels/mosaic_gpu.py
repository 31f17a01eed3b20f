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

from .places import merge_frames
from .reference import NULL_FRAME, Fallback

__all__ = ["gather_chunks"]

_PIECE_BYTES = 128
_MOST_VALUES = 256  # of one axis of a copy
_BLOCK_BYTES = 1 << 16  # of shared memory


def gather_chunks(
    pool: jax.Array,
    frames: jax.Array,
    chunk_dim: int,
    fallback: Fallback = None,
    *,
    interpret: Any = False,
) -> jax.Array:
    """Read `pool[frames]`; see `pallas_kernels.api.gather_chunks`.

    The null frame is read like any other: it stays in the cache.

    Args:
      pool: `[P * C]` or lines `[L, w]`.
      frames: `i32[...]`.
      chunk_dim: C, at most 256, so that a chunk has a multiple of 128 bytes.
      fallback: another pool like this, and its frames.
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
    pools, places = merge_frames(pool, frames, fallback)
    block = min(_BLOCK_BYTES // num_bytes, _MOST_VALUES)
    num_blocks = -(-places.size // block)
    if not num_blocks:
        return jnp.zeros((*frames.shape, chunk_dim), pool.dtype)
    missing = num_blocks * block - places.size
    padded = jnp.pad(places.reshape(-1), (0, missing), constant_values=NULL_FRAME)
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
    )(padded, *(one.reshape(-1, chunk_dim) for one in pools))
    return chunks[: places.size].reshape(*frames.shape, chunk_dim)


def _gather_block(places: Any, *refs: Any) -> None:
    """Read the chunks of a block, all copies in flight at once.

    Args:
      places: `i32[n]`, as `merge_frames` returns them.
      *refs: the pools, each `[P, C]`; `[n, C]` the chunks, to be written; `[B, C]` of
        shared memory; and a barrier that B copies arrive at.
    """
    *pools, chunks, rows, arrival = refs
    block = rows.shape[0]
    first = lax.axis_index("block") * block

    def copy(pool: Any, frame: Any, row: Any) -> None:
        plgpu.copy_gmem_to_smem(
            pool.at[pl.ds(frame, 1)], rows.at[pl.ds(row, 1)], arrival
        )

    def start(row: Any, _: None) -> None:
        place = places[first + row]
        if len(pools) == 1:
            copy(pools[0], place, row)
            return
        pl.when(place >= NULL_FRAME)(lambda: copy(pools[0], place, row))
        pl.when(place < NULL_FRAME)(lambda: copy(pools[1], -place, row))

    lax.fori_loop(0, block, start, None)
    plgpu.barrier_wait(arrival)
    plgpu.copy_smem_to_gmem(rows, chunks.at[pl.ds(first, block)])
    plgpu.wait_smem_to_gmem(0)
