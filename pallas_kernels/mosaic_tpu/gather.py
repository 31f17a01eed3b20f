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
from .halves import as_32_bits, lines_at, lines_per_copy, own_lanes

__all__ = ["gather_chunks"]

_BLOCK = 256  # frames per grid step
_IN_FLIGHT = 16  # copies of lines; a divisor of the block


def gather_chunks(
    pool: jax.Array, frames: jax.Array, chunk_dim: int, *, interpret: Any = False
) -> jax.Array:
    """Read `pool[frames]`; see `pallas_kernels.api.gather_chunks`.

    Args:
      pool: `[L, 128]` lines of 32-bit values, or of `uint16` with L even; C a divisor
        of 128.
      frames: `i32[...]`.
      chunk_dim: C, values per chunk.
      interpret: as for `pl.pallas_call`.

    Returns:
      `[..., C]`.

    Raises:
      NotImplementedError: on a pool that is not made of such lines.
    """
    check_lines("mosaic_tpu", "a pool", pool, short=True)
    flat = frames.reshape(-1)
    num_blocks = -(-flat.size // _BLOCK)
    if not num_blocks:
        return jnp.zeros((*frames.shape, chunk_dim), pool.dtype)
    padded = jnp.pad(
        flat, (0, num_blocks * _BLOCK - flat.size), constant_values=NULL_FRAME
    )
    wide = as_32_bits(pool.dtype)
    chunks = pl.pallas_call(
        functools.partial(_gather_block, chunk_dim=chunk_dim),
        out_shape=jax.ShapeDtypeStruct((padded.size, chunk_dim), wide),
        grid=(num_blocks,),
        in_specs=[
            pl.BlockSpec((_BLOCK,), lambda block: (block,), memory_space=pltpu.SMEM),
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        out_specs=pl.BlockSpec((_BLOCK, chunk_dim), lambda block: (block, 0)),
        scratch_shapes=[
            pltpu.VMEM((_BLOCK * lines_per_copy(pool.dtype), LANES), pool.dtype),
            pltpu.VMEM((_BLOCK, LANES), wide),
            pltpu.SemaphoreType.DMA((_IN_FLIGHT,)),
        ],
        interpret=interpret,
        name="gather_chunks",
    )(padded, pool)
    return chunks[: flat.size].reshape(*frames.shape, chunk_dim).astype(pool.dtype)


def _gather_block(
    frames: Any,
    pool: Any,
    chunks: Any,
    landing: Any,
    lines: Any,
    arrivals: Any,
    *,
    chunk_dim: int,
) -> None:
    """Read the chunks of a block.

    Args:
      frames: `i32[B]`, scalars.
      pool: `[L, 128]` in the memory of the chip.
      chunks: `[B, C]` of 32 bits, to be written.
      landing: `[B, 128]`, or `[2 B, 128]` of 16 bits: where copies arrive.
      lines: `[B, 128]` of 32 bits, the same; not used where `landing` has 32 bits.
      arrivals: a semaphore per copy in flight.
      chunk_dim: C.
    """
    dtype, is_short = landing.dtype, landing.dtype.itemsize == 2
    per_copy = LANES // chunk_dim * lines_per_copy(dtype)

    def copy_of(row: Any) -> Any:
        return pltpu.make_async_copy(
            pool.at[lines_at(frames[row] // per_copy, dtype)],
            landing.at[lines_at(row, dtype)],
            arrivals.at[row % _IN_FLIGHT],
        )

    def start(row: Any) -> None:
        @pl.when(frames[row] != NULL_FRAME)
        def _() -> None:
            copy_of(row).start()

    def unpack(row: Any, held: Any) -> None:
        @pl.when(frames[row] != NULL_FRAME)
        def _() -> None:
            line = held[pl.ds(row, 1), :]
            line = own_lanes(line, frames[row], chunk_dim, is_short=is_short)
            chunks[pl.ds(row, 1), :] = line[:, :chunk_dim]

        @pl.when(frames[row] == NULL_FRAME)
        def _() -> None:
            chunks[pl.ds(row, 1), :] = jnp.zeros((1, chunk_dim), chunks.dtype)

    def turn(row: Any, _: None) -> None:
        @pl.when(frames[row] != NULL_FRAME)
        def _() -> None:
            copy_of(row).wait()

        if not is_short:
            unpack(row, landing)

        # The semaphore of this row is free now.
        @pl.when(row + _IN_FLIGHT < _BLOCK)
        def _() -> None:
            start(row + _IN_FLIGHT)

    lax.fori_loop(0, _IN_FLIGHT, lambda row, _: start(row), None)
    lax.fori_loop(0, _BLOCK, turn, None)
    if is_short:
        # Of 16 bits no single row can be read.
        lines[...] = pltpu.bitcast(landing[...], lines.dtype)
        lax.fori_loop(0, _BLOCK, lambda row, _: unpack(row, lines), None)
