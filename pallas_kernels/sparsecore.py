"""Kernels for the SparseCores of a TPU, by Pallas.

A SparseCore has subcores that fetch lines by lists of their numbers, and pick single
values out of what has arrived. A null frame is fetched too: it is zeros where it lies.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import tpu_sc as plsc

from .lines import LANES, check_lines

__all__ = ["gather_chunks"]

_BLOCK = 128  # frames per fetch, the longest list of a stream


def gather_chunks(pool: jax.Array, frames: jax.Array, chunk_dim: int) -> jax.Array:
    """Read `pool[frames]`; see `pallas_kernels.api.gather_chunks`.

    Args:
      pool: `[L, 128]` lines of 32-bit values, C a divisor of 128.
      frames: `i32[...]`.
      chunk_dim: C, values per chunk.

    Returns:
      `[..., C]`.

    Raises:
      NotImplementedError: on a pool that is not made of such lines, and on a chip
        without SparseCores.
    """
    check_lines("sparsecore", "a pool", pool)
    info = pltpu.get_tpu_info().sparse_core
    if info is None:
        raise NotImplementedError(
            "implementation='sparsecore' needs a chip with SparseCores, such as v5p "
            "and v6e"
        )
    flat = frames.reshape(-1)
    if not flat.size:
        return jnp.zeros((*frames.shape, chunk_dim), pool.dtype)
    mesh = plsc.VectorSubcoreMesh(
        core_axis_name="core",
        subcore_axis_name="subcore",
        num_cores=info.num_cores,
        num_subcores=info.num_subcores,
    )
    num_workers = info.num_cores * info.num_subcores
    num_blocks = -(-flat.size // (_BLOCK * num_workers))
    padded = jnp.pad(flat, (0, num_blocks * num_workers * _BLOCK - flat.size))
    kernel: Any = pl.kernel
    chunks = kernel(
        functools.partial(
            _gather_blocks,
            num_blocks=num_blocks,
            num_cores=info.num_cores,
            chunk_dim=chunk_dim,
            num_lanes=info.num_lanes,
        ),
        out_type=jax.ShapeDtypeStruct((padded.size * chunk_dim,), pool.dtype),
        mesh=mesh,
        scratch_types=[
            pltpu.VMEM((_BLOCK,), jnp.int32),
            pltpu.VMEM((_BLOCK,), jnp.int32),
            pltpu.VMEM((_BLOCK, LANES), pool.dtype),
            pltpu.VMEM((_BLOCK * chunk_dim,), pool.dtype),
        ],
        compiler_params=pltpu.CompilerParams(needs_layout_passes=False),
        name="gather_chunks",
    )(padded, padded * chunk_dim // LANES, pool)
    return chunks[: flat.size * chunk_dim].reshape(*frames.shape, chunk_dim)


def _gather_blocks(
    frames: Any,
    lines: Any,
    pool: Any,
    chunks: Any,
    own_frames: Any,
    own_lines: Any,
    held: Any,
    out: Any,
    *,
    num_blocks: int,
    num_cores: int,
    chunk_dim: int,
    num_lanes: int,
) -> None:
    """Read the chunks of the blocks of a subcore.

    Args:
      frames: `i32[n]` in the memory of the chip, as the next three.
      lines: `i32[n]`, where they are.
      pool: `[L, 128]`.
      chunks: `[n * C]`, to be written.
      own_frames: `i32[B]`, of a block.
      own_lines: `i32[B]`.
      held: `[B, 128]`, where lines arrive.
      out: `[B * C]`, where chunks are put together.
      num_blocks: of each subcore.
      num_cores: of the chip.
      chunk_dim: C.
      num_lanes: of a vector.
    """
    worker = lax.axis_index("subcore") * num_cores + lax.axis_index("core")
    per_line, shift = LANES // chunk_dim, chunk_dim.bit_length() - 1

    @pl.loop(0, num_blocks)
    def _(block: Any) -> None:
        first = (worker * num_blocks + block) * _BLOCK
        pltpu.sync_copy(frames.at[pl.ds(first, _BLOCK)], own_frames)
        pltpu.sync_copy(lines.at[pl.ds(first, _BLOCK)], own_lines)
        pltpu.sync_copy(pool.at[own_lines], held)

        @pl.loop(0, _BLOCK * chunk_dim, step=num_lanes)
        def _(place: Any) -> None:
            places = place + lax.iota(jnp.int32, num_lanes)
            row = places >> shift
            frame = plsc.load_gather(own_frames, [row])
            lane = (frame & (per_line - 1)) << shift | places & (chunk_dim - 1)
            out[pl.ds(place, num_lanes)] = plsc.load_gather(held, [row, lane])

        pltpu.sync_copy(out, chunks.at[pl.ds(first * chunk_dim, _BLOCK * chunk_dim)])
