"""Stepping chunks in their place: a line is read and written once for its frames."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..lines import LANES, check_lines
from ..reference import NULL_FRAME, Arrays, Update

__all__ = ["update_chunks"]

_BLOCK = 256  # frames per grid step


def update_chunks(
    arrays: Arrays,
    frames: jax.Array,
    operands: Arrays,
    update: Update,
    widths: tuple[int, ...],
    *,
    interpret: Any = False,
) -> tuple[Arrays, jax.Array]:
    """Step frames of several arrays; see `pallas_kernels.api.update_chunks`.

    Frames are brought in order first, so that those of one line follow each other: a
    line is read once and written once for all of them.

    Args:
      arrays: each `[L, 128]` lines of 32-bit values.
      frames: `i32[n]`, distinct but for `NULL_FRAME`, all in range.
      operands: each `[n, k]` of 32-bit values, or a scalar.
      update: of rows.
      widths: C for every array, a divisor of 128.
      interpret: as for `pl.pallas_call`.

    Returns:
      The arrays, and `bool[n]` what was accepted.

    Raises:
      NotImplementedError: on arrays that are not made of such lines.
    """
    chunk_dim = widths[0]
    for array, width in zip(arrays, widths, strict=True):
        check_lines("mosaic_tpu", "arrays", array)
        if width != chunk_dim:
            raise NotImplementedError(
                "implementation='mosaic_tpu' needs one width of all arrays: a line is "
                f"the least that is copied; got widths {widths}"
            )
    if not frames.size:
        return arrays, jnp.zeros(0, bool)
    num_blocks = -(-frames.size // _BLOCK)
    missing = num_blocks * _BLOCK - frames.size
    order = jnp.argsort(frames)
    padding = ((0, missing), (0, 0))
    ordered = jnp.pad(frames[order], (0, missing), constant_values=NULL_FRAME)
    rows = [
        jnp.pad(operand[order], padding) if operand.ndim else operand[None]
        for operand in operands
    ]
    lines = ordered * chunk_dim // LANES
    by_block = jnp.where(ordered == NULL_FRAME, -1, lines).reshape(-1, _BLOCK)
    before = jnp.pad(by_block[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    begins = ((by_block != before) & (by_block >= 0)).astype(jnp.int32)
    slots = jnp.maximum(jnp.cumsum(begins, axis=1, dtype=jnp.int32) - 1, 0)
    scalars = pl.BlockSpec((_BLOCK,), lambda block: (block,), memory_space=pltpu.SMEM)
    whole = pl.BlockSpec(memory_space=pltpu.SMEM)
    in_place = pl.BlockSpec(memory_space=pl.ANY)
    first = 3 + len(rows)
    *new, accepts = pl.pallas_call(
        functools.partial(
            _update_block, chunk_dim=chunk_dim, update=update, num_rows=len(rows)
        ),
        out_shape=[
            *(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays),
            jax.ShapeDtypeStruct((ordered.size, 1), jnp.int32),
        ],
        grid=(num_blocks,),
        in_specs=[
            *[scalars] * 3,
            *(
                pl.BlockSpec((_BLOCK, row.shape[1]), lambda block: (block, 0))
                if row.ndim > 1
                else whole
                for row in rows
            ),
            *[in_place] * len(arrays),
        ],
        out_specs=[
            *[in_place] * len(arrays),
            pl.BlockSpec((_BLOCK, 1), lambda block: (block, 0)),
        ],
        scratch_shapes=[
            *(pltpu.VMEM((_BLOCK, LANES), array.dtype) for array in arrays),
            *(pltpu.VMEM((_BLOCK, LANES), array.dtype) for array in arrays),
            pltpu.SemaphoreType.DMA((len(arrays),)),
        ],
        input_output_aliases={first + number: number for number in range(len(arrays))},
        interpret=interpret,
        name="update_chunks",
    )(ordered, begins.reshape(-1), slots.reshape(-1), *rows, *arrays)
    flags = jnp.zeros(frames.size, bool)
    flags = flags.at[order].set(accepts[: frames.size, 0] > 0, unique_indices=True)
    return tuple(new), flags


def _update_block(
    frames: Any,
    begins: Any,
    slots: Any,
    *refs: Any,
    chunk_dim: int,
    update: Update,
    num_rows: int,
) -> None:
    """Step the frames of a block.

    Args:
      frames: `i32[B]`, scalars, in order.
      begins: `i32[B]`, scalars; 1 for the first frame of a line.
      slots: `i32[B]`, scalars; which of the lines of this block it is.
      *refs: the operands; the arrays twice, as they come and to be written; `[B, 1]`
        what is accepted, to be written; per array `[B, 128]` where lines are and as
        much for chunks; a semaphore per array.
      chunk_dim: C.
      update: of rows.
      num_rows: how many operands there are.
    """
    per_line = jnp.int32(LANES // chunk_dim)
    rows, refs = refs[:num_rows], refs[num_rows:]
    num_arrays = (len(refs) - 2) // 4
    # What comes is what is written: a line of the block before is read as it left it.
    arrays, accepted = refs[num_arrays : 2 * num_arrays], refs[2 * num_arrays]
    held = refs[2 * num_arrays + 1 : 3 * num_arrays + 1]
    chunks, arrivals = refs[3 * num_arrays + 1 : -1], refs[-1]

    def copies(row: Any, *, back: bool) -> list[Any]:
        pairs = []
        for number in range(num_arrays):
            line = arrays[number].at[pl.ds(frames[row] // per_line, 1)]
            here = held[number].at[pl.ds(slots[row], 1)]
            pair = (here, line) if back else (line, here)
            pairs.append(pltpu.make_async_copy(*pair, arrivals.at[number]))
        return pairs

    def for_lines(act: str, *, back: bool) -> None:
        def turn(row: Any, _: None) -> None:
            @pl.when(begins[row] == 1)
            def _() -> None:
                for copy in copies(row, back=back):
                    getattr(copy, act)()

        lax.fori_loop(0, _BLOCK, turn, None)

    def unpack(row: Any, _: None) -> None:
        @pl.when(frames[row] != NULL_FRAME)
        def _() -> None:
            shift = (LANES - frames[row] % per_line * chunk_dim) % LANES
            for lines, own in zip(held, chunks, strict=True):
                line = lines[pl.ds(slots[row], 1), :]
                own[pl.ds(row, 1), :] = pltpu.roll(line, shift, 1)

        @pl.when(frames[row] == NULL_FRAME)
        def _() -> None:
            for own in chunks:
                own[pl.ds(row, 1), :] = jnp.zeros((1, LANES), own.dtype)

    def pack(row: Any, _: None) -> None:
        @pl.when(frames[row] != NULL_FRAME)
        def _() -> None:
            first = frames[row] % per_line * chunk_dim
            lanes = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
            is_own = (lanes >= first) & (lanes < first + chunk_dim)
            is_own &= accepted[pl.ds(row, 1), :] > 0
            for lines, own in zip(held, chunks, strict=True):
                here = pl.ds(slots[row], 1)
                new = pltpu.roll(own[pl.ds(row, 1), :], first, 1)
                lines[here, :] = jnp.where(is_own, new, lines[here, :])

    for_lines("start", back=False)
    for_lines("wait", back=False)
    lax.fori_loop(0, _BLOCK, unpack, None)
    windows = tuple(own[:, :chunk_dim] for own in chunks)
    given = tuple(row[0] if len(row.shape) == 1 else row[...] for row in rows)
    windows, accepts = update(windows, given)
    for own, window in zip(chunks, windows, strict=True):
        own[:, :chunk_dim] = window.astype(own.dtype)
    accepted[...] = accepts.astype(jnp.int32)
    lax.fori_loop(0, _BLOCK, pack, None)
    for_lines("start", back=True)
    for_lines("wait", back=True)
