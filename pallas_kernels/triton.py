"""Kernels for NVIDIA GPUs, by Pallas Triton.

JAX means to remove this way of writing them (deprecated since 0.11): it is in this file
alone.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from .reference import NULL_FRAME

__all__ = ["gather_chunks"]

_FLOATS = (jnp.float32, jnp.float16, jnp.bfloat16)
_VALUES = 2048  # per program
_NUM_WARPS = 4


def gather_chunks(
    pool: jax.Array, frames: jax.Array, chunk_dim: int, *, interpret: bool = False
) -> jax.Array:
    """Read `pool[frames]`; see `pallas_kernels.api.gather_chunks`.

    Args:
      pool: `[P * C]` or lines `[L, w]`, fewer than 2^31 values.
      frames: `i32[...]`.
      chunk_dim: C, a power of 2.
      interpret: as for `pl.pallas_call`.

    Returns:
      `[..., C]`.

    Raises:
      NotImplementedError: on another C, and on a larger pool.
    """
    if chunk_dim & (chunk_dim - 1):
        raise NotImplementedError(
            "implementation='triton' needs a chunk_dim that is a power of 2, got "
            f"{chunk_dim}"
        )
    if not (jnp.issubdtype(pool.dtype, jnp.integer) or pool.dtype in _FLOATS):
        raise NotImplementedError(
            "implementation='triton' needs a pool of integers, float32, float16 or "
            f"bfloat16, got {pool.dtype}"
        )
    flat = frames.reshape(-1)
    block = max(_VALUES // chunk_dim, 1)
    num_blocks = -(-flat.size // block)
    if max(pool.size, num_blocks * block * chunk_dim) >= 1 << 31:
        raise NotImplementedError(
            "implementation='triton' needs pool and result to have fewer than 2^31 "
            f"values, got shapes {pool.shape} and {(*frames.shape, chunk_dim)}"
        )
    if not num_blocks:
        return jnp.zeros((*frames.shape, chunk_dim), pool.dtype)
    chunks = pl.pallas_call(
        functools.partial(_gather_block, block=block, chunk_dim=chunk_dim),
        out_shape=jax.ShapeDtypeStruct((flat.size, chunk_dim), pool.dtype),
        grid=(num_blocks,),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 2,
        out_specs=pl.BlockSpec(memory_space=pl.ANY),
        compiler_params=plgpu.CompilerParams(num_warps=_NUM_WARPS),
        interpret=interpret,
        name="gather_chunks",
    )(flat, pool.reshape(-1))
    return chunks.reshape(*frames.shape, chunk_dim)


def _gather_block(
    frames: Any, pool: Any, chunks: Any, *, block: int, chunk_dim: int
) -> None:
    """Read the chunks of a block; a null frame reads nothing.

    Args:
      frames: `i32[n]`.
      pool: `[P * C]`.
      chunks: `[n, C]`, to be written.
      block: frames per program.
      chunk_dim: C.
    """
    rows = pl.program_id(0) * block + jnp.arange(block)
    columns = jnp.arange(chunk_dim)[None, :]
    exists = rows < frames.shape[0]
    frame = plgpu.load(frames.at[rows], mask=exists, other=NULL_FRAME)
    values = plgpu.load(
        pool.at[frame[:, None] * chunk_dim + columns],
        mask=jnp.broadcast_to((frame != NULL_FRAME)[:, None], (block, chunk_dim)),
        other=0,
    )
    plgpu.store(
        chunks.at[rows[:, None], columns],
        values,
        mask=jnp.broadcast_to(exists[:, None], (block, chunk_dim)),
    )
