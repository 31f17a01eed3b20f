"""Reading chunks: copies of lines in flight, one for neighbours, none for null frames.

The chunks of a vector lie side by side, so that most share a line with the one before.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..lines import LANES, check_lines
from ..places import merge_frames
from ..reference import NULL_FRAME, Fallback
from .halves import as_32_bits, lines_at, lines_per_copy, own_lanes

__all__ = ["gather_chunks"]

_BLOCK = 256  # frames per grid step
_IN_FLIGHT = 32  # frames whose copies have started; a divisor of the block

_SHORT = (jnp.uint16, jnp.int16, jnp.bfloat16)  # Mosaic loads no float16


def gather_chunks(
    pool: jax.Array,
    frames: jax.Array,
    chunk_dim: int,
    fallback: Fallback = None,
    *,
    interpret: Any = False,
) -> jax.Array:
    """Read `pool[frames]`; see `pallas_kernels.api.gather_chunks`.

    Args:
      pool: `[L, 128]` lines of 32-bit values, or of 16-bit ones but float16 with L
        even; C a divisor of 128.
      frames: `i32[...]`.
      chunk_dim: C, values per chunk.
      fallback: another pool like this, and its frames.
      interpret: as for `pl.pallas_call`.

    Returns:
      `[..., C]`.

    Raises:
      NotImplementedError: on a pool that is not made of such lines.
    """
    pools, places = merge_frames(pool, frames, fallback)
    for name, one in zip(("a pool", "a fallback"), pools, strict=False):
        check_lines("mosaic_tpu", name, one, short=_SHORT)
    num_blocks = -(-places.size // _BLOCK)
    if not num_blocks:
        return jnp.zeros((*frames.shape, chunk_dim), pool.dtype)
    missing = num_blocks * _BLOCK - places.size
    padded = jnp.pad(places.reshape(-1), (0, missing), constant_values=NULL_FRAME)
    dtype, wide = pool.dtype, as_32_bits(pool.dtype)
    per_copy = LANES // chunk_dim * lines_per_copy(pool.dtype)
    scalars = pl.BlockSpec((_BLOCK,), lambda block: (block,), memory_space=pltpu.SMEM)
    chunks = pl.pallas_call(
        functools.partial(_gather_block, chunk_dim=chunk_dim),
        out_shape=jax.ShapeDtypeStruct((padded.size, chunk_dim), wide),
        grid=(num_blocks,),
        in_specs=[
            scalars,
            scalars,
            *[pl.BlockSpec(memory_space=pl.ANY)] * len(pools),
        ],
        out_specs=pl.BlockSpec((_BLOCK, chunk_dim), lambda block: (block, 0)),
        scratch_shapes=[
            pltpu.VMEM((_BLOCK * lines_per_copy(dtype), LANES), dtype),
            pltpu.VMEM((_BLOCK, LANES), wide),
            pltpu.SemaphoreType.DMA((_IN_FLIGHT,)),
        ],
        interpret=interpret,
        name="gather_chunks",
    )(padded, _holders(padded, per_copy), *pools)
    chunks = chunks[: places.size].reshape(*frames.shape, chunk_dim)
    if dtype.itemsize == 2:
        chunks = lax.bitcast_convert_type(chunks.astype(jnp.uint16), dtype)
    return chunks


def _holders(places: jax.Array, per_copy: int) -> jax.Array:
    """Tell whose copy each chunk is in: that of the first of neighbours in a line.

    Args:
      places: `i32[n]` in whole blocks.
      per_copy: frames in what is copied at once.

    Returns:
      `i32[n]` rows of the block.
    """
    lines = jnp.sign(places) * (jnp.abs(places) // per_copy + 1)
    lines = lines.reshape(-1, _BLOCK)
    begins = lines != jnp.pad(lines[:, :-1], ((0, 0), (1, 0)))
    rows = lax.broadcasted_iota(jnp.int32, lines.shape, 1)
    return lax.cummax(jnp.where(begins, rows, 0), axis=1).reshape(-1)


def _gather_block(places: Any, holders: Any, *refs: Any, chunk_dim: int) -> None:
    """Read the chunks of a block.

    Args:
      places: `i32[B]`, scalars, as `merge_frames` returns them.
      holders: `i32[B]`, scalars, of `_holders`.
      *refs: the pools, each `[L, 128]` in the memory of the chip; `[B, C]` of 32 bits,
        the chunks, to be written; `[B, 128]`, or `[2 B, 128]` of 16 bits, where copies
        arrive; `[B, 128]` of 32 bits, the same, not used where the former has 32 bits;
        and a semaphore per copy in flight.
      chunk_dim: C.
    """
    *pools, chunks, landing, lines, arrivals = refs
    dtype, is_short = landing.dtype, landing.dtype.itemsize == 2
    per_copy = LANES // chunk_dim * lines_per_copy(dtype)

    def for_copy(row: Any, act: str) -> None:
        """Start or await the copy of a row, if there is one."""
        for pool, frame in zip(pools, (places[row], -places[row]), strict=False):

            @pl.when((frame > NULL_FRAME) & (holders[row] == row))
            def _(pool: Any = pool, frame: Any = frame) -> None:
                copy = pltpu.make_async_copy(
                    pool.at[lines_at(frame // per_copy, dtype)],
                    landing.at[lines_at(row, dtype)],
                    arrivals.at[row % _IN_FLIGHT],
                )
                getattr(copy, act)()

    def unpack(row: Any, held: Any) -> None:
        @pl.when(places[row] != NULL_FRAME)
        def _() -> None:
            line, frame = held[pl.ds(holders[row], 1), :], jnp.abs(places[row])
            line = own_lanes(line, frame, chunk_dim, is_short=is_short)
            chunks[pl.ds(row, 1), :] = line[:, :chunk_dim]

        @pl.when(places[row] == NULL_FRAME)
        def _() -> None:
            chunks[pl.ds(row, 1), :] = jnp.zeros((1, chunk_dim), chunks.dtype)

    def turn(row: Any, _: None) -> None:
        for_copy(row, "wait")
        if not is_short:
            unpack(row, landing)

        # The semaphore of this row is free now.
        @pl.when(row + _IN_FLIGHT < _BLOCK)
        def _() -> None:
            for_copy(row + _IN_FLIGHT, "start")

    lax.fori_loop(0, _IN_FLIGHT, lambda row, _: for_copy(row, "start"), None)
    lax.fori_loop(0, _BLOCK, turn, None)
    if is_short:
        # Of 16 bits no single row can be read.
        lines[...] = pltpu.bitcast(landing[...], lines.dtype)
        lax.fori_loop(0, _BLOCK, lambda row, _: unpack(row, lines), None)
