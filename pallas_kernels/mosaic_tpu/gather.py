"""Reading chunks: several copies of lines in flight, none for a null frame."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..lines import LANES, check_lines
from ..reference import NULL_FRAME

__all__ = ["gather_chunks"]

_BLOCK = 256  # frames per grid step
_IN_FLIGHT = 16  # copies of lines; a divisor of the block


def gather_chunks(
    pool: jax.Array, frames: jax.Array, chunk_dim: int, *, interpret: Any = False
) -> jax.Array:
    """Read `pool[frames]`; see `pallas_kernels.api.gather_chunks`.

    Args:
      pool: `[L, 128]` lines of 32-bit values, C a divisor of 128.
      frames: `i32[...]`.
      chunk_dim: C, values per chunk.
      interpret: as for `pl.pallas_call`.

    Returns:
      `[..., C]`.

    Raises:
      NotImplementedError: on a pool that is not made of such lines.
    """
    check_lines("mosaic_tpu", "a pool", pool)
    flat = frames.reshape(-1)
    num_blocks = -(-flat.size // _BLOCK)
    if not num_blocks:
        return jnp.zeros((*frames.shape, chunk_dim), pool.dtype)
    padded = jnp.pad(
        flat, (0, num_blocks * _BLOCK - flat.size), constant_values=NULL_FRAME
    )
    chunks = pl.pallas_call(
        functools.partial(_gather_block, chunk_dim=chunk_dim),
        out_shape=jax.ShapeDtypeStruct((padded.size, chunk_dim), pool.dtype),
        grid=(num_blocks,),
        in_specs=[
            pl.BlockSpec((_BLOCK,), lambda block: (block,), memory_space=pltpu.SMEM),
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        out_specs=pl.BlockSpec((_BLOCK, chunk_dim), lambda block: (block, 0)),
        scratch_shapes=[
            pltpu.VMEM((_BLOCK, LANES), pool.dtype),
            pltpu.SemaphoreType.DMA((_IN_FLIGHT,)),
        ],
        interpret=interpret,
        name="gather_chunks",
    )(padded, pool)
    return chunks[: flat.size].reshape(*frames.shape, chunk_dim)


def _gather_block(
    frames: Any, pool: Any, chunks: Any, lines: Any, arrivals: Any, *, chunk_dim: int
) -> None:
    """Read the chunks of a block.

    Args:
      frames: `i32[B]`, scalars.
      pool: `[L, 128]` in the memory of the chip.
      chunks: `[B, C]`, to be written.
      lines: `[B, 128]`, where copies arrive.
      arrivals: a semaphore per copy in flight.
      chunk_dim: C.
    """
    per_line = jnp.int32(LANES // chunk_dim)

    def copy_of(row: Any) -> Any:
        return pltpu.make_async_copy(
            pool.at[pl.ds(frames[row] // per_line, 1)],
            lines.at[pl.ds(row, 1)],
            arrivals.at[row % _IN_FLIGHT],
        )

    def start(row: Any) -> None:
        @pl.when(frames[row] != NULL_FRAME)
        def _() -> None:
            copy_of(row).start()

    def finish(row: Any) -> None:
        frame = frames[row]

        @pl.when(frame != NULL_FRAME)
        def _() -> None:
            copy_of(row).wait()
            line = lines[pl.ds(row, 1), :]
            if chunk_dim < LANES:  # its chunk to the first lanes
                first = frame % per_line * chunk_dim
                line = pltpu.roll(line, (LANES - first) % LANES, 1)
            chunks[pl.ds(row, 1), :] = line[:, :chunk_dim]

        @pl.when(frame == NULL_FRAME)
        def _() -> None:
            chunks[pl.ds(row, 1), :] = jnp.zeros((1, chunk_dim), chunks.dtype)

    def turn(row: Any, _: None) -> None:
        finish(row)

        # The semaphore of this row is free now.
        @pl.when(row + _IN_FLIGHT < _BLOCK)
        def _() -> None:
            start(row + _IN_FLIGHT)

    lax.fori_loop(0, _IN_FLIGHT, lambda row, _: start(row), None)
    lax.fori_loop(0, _BLOCK, turn, None)
