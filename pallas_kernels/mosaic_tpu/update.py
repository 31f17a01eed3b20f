"""Stepping chunks in their place: a line is read and written once for its frames."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..lines import LANES, check_lines
from ..reference import NULL_FRAME, Arrays, Update
from ..windows import gather_windows
from .halves import (
    HALF,
    as_32_bits,
    bits_of_window,
    half_shift,
    lines_at,
    lines_per_copy,
    own_lanes,
    window_of_bits,
)
from .powers import with_float_powers

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
    line is read once and written once for all of them. Lines of 16-bit values are
    moved by twos, as they lie in memory.

    Args:
      arrays: each `[L, 128]` lines of 32-bit values, or of `uint16` or `bfloat16` with
        L even; or `[P]` 32-bit values with P a multiple of 128.
      frames: `i32[n]`, distinct but for `NULL_FRAME`, all in range.
      operands: each `[n, k]` of 32-bit values, or a scalar.
      update: of rows.
      widths: per array, divisors of 128.
      interpret: as for `pl.pallas_call`.

    Returns:
      The arrays, and `bool[n]` what was accepted.

    Raises:
      NotImplementedError: on arrays that are not made of such lines.
    """
    for array, width in zip(arrays, widths, strict=True):
        short = (jnp.uint16, jnp.bfloat16)  # what `window_of_bits` knows
        check_lines("mosaic_tpu", "arrays", array, flat=True, short=short)
        if LANES % width:
            raise NotImplementedError(
                "implementation='mosaic_tpu' needs widths that divide 128: a line is "
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
        jnp.pad(_in_order(operand, order), padding) if operand.ndim else operand[None]
        for operand in operands
    ]
    per_line = [
        LANES // width * lines_per_copy(array.dtype)
        for array, width in zip(arrays, widths, strict=True)
    ]
    kinds = sorted(set(per_line))
    lines = [column for kind in kinds for column in _lines_of(ordered, kind)]
    scalars = pl.BlockSpec((_BLOCK,), lambda block: (block,), memory_space=pltpu.SMEM)
    whole = pl.BlockSpec(memory_space=pltpu.SMEM)
    in_place = pl.BlockSpec(memory_space=pl.ANY)
    first = 1 + len(lines) + len(rows)
    *new, accepts = pl.pallas_call(
        functools.partial(
            _update_block,
            widths=widths,
            kinds=[kinds.index(kind) for kind in per_line],
            update=update,
            num_rows=len(rows),
        ),
        out_shape=[
            *(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays),
            # By lanes: of a column every number would take a line.
            jax.ShapeDtypeStruct((num_blocks, 1, _BLOCK), jnp.int32),
        ],
        grid=(num_blocks,),
        in_specs=[
            *[scalars] * (1 + len(lines)),
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
            pl.BlockSpec((1, 1, _BLOCK), lambda block: (block, 0, 0)),
        ],
        scratch_shapes=[
            pltpu.VMEM((_BLOCK, 1), jnp.int32),
            *(
                pltpu.VMEM((_BLOCK * lines_per_copy(array.dtype), LANES), array.dtype)
                for array in arrays
            ),
            *(pltpu.VMEM((_BLOCK, LANES), as_32_bits(array.dtype)) for array in arrays),
            *(pltpu.VMEM((_BLOCK, LANES), as_32_bits(array.dtype)) for array in arrays),
            pltpu.SemaphoreType.DMA((len(arrays),)),
        ],
        input_output_aliases={first + number: number for number in range(len(arrays))},
        interpret=interpret,
        name="update_chunks",
    )(ordered, *lines, *rows, *arrays)
    flags = jnp.zeros(frames.size, bool)
    accepts = accepts.reshape(-1)[: frames.size] > 0
    flags = flags.at[order].set(accepts, unique_indices=True)
    return tuple(new), flags


def _in_order(operand: jax.Array, order: jax.Array) -> jax.Array:
    """Bring rows in order, out of a flat array: narrow ones are padded to lines."""
    return gather_windows(operand.reshape(-1), order, operand.shape[1])


def _lines_of(ordered: jax.Array, per_line: int) -> tuple[jax.Array, jax.Array]:
    """Number the lines of each block, of arrays with so many frames to a line.

    Args:
      ordered: `i32[n]` frames in order, null frames first or last.
      per_line: frames per line, or per two lines where these are moved together.

    Returns:
      `i32[n]`, 1 for the first frame of a line in its block; and `i32[n]` which of the
      lines of its block it is in.
    """
    lines = jnp.where(ordered == NULL_FRAME, -1, ordered // per_line)
    lines = lines.reshape(-1, _BLOCK)
    before = jnp.pad(lines[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    begins = ((lines != before) & (lines >= 0)).astype(jnp.int32)
    slots = jnp.maximum(jnp.cumsum(begins, axis=1, dtype=jnp.int32) - 1, 0)
    return begins.reshape(-1), slots.reshape(-1)


class _Held(NamedTuple):
    """An array within a block.

    Attributes:
      array: `[L, 128]` or `[P]` in the memory of the chip.
      begins: `i32[B]`, scalars; 1 for the first frame of a line.
      slots: `i32[B]`, scalars; which of the lines of the block it is in.
      landing: `[B, 128]`, or `[2 B, 128]` of 16 bits: where lines are copied to.
      lines: `[B, 128]` of 32 bits, the same, two lines side by side in one; it is not
        used where `landing` has 32 bits.
      chunks: `[B, 128]` of 32 bits: each frame has its own values in the first lanes.
      arrival: a semaphore.
      width: values per frame.
    """

    array: Any
    begins: Any
    slots: Any
    landing: Any
    lines: Any
    chunks: Any
    arrival: Any
    width: int

    @property
    def is_short(self) -> bool:
        """Whether values have 16 bits."""
        return self.landing.dtype.itemsize == 2

    def copy(self, frame: Any, row: Any, *, back: bool) -> Any:
        """Copy the line of a frame here, or back to where it comes from."""
        line, here = frame // (LANES // self.width), self.slots[row]
        if len(self.array.shape) == 1:
            first = pl.multiple_of(line * LANES, LANES)
            there, here = self.array.at[pl.ds(first, LANES)], self.landing.at[here]
        else:
            there, here = (
                array.at[lines_at(number, array.dtype)]
                for array, number in (
                    (self.array, line // lines_per_copy(self.array.dtype)),
                    (self.landing, here),
                )
            )
        source, target = (here, there) if back else (there, here)
        return pltpu.make_async_copy(source, target, self.arrival)

    def arrive(self) -> None:
        """Take what was copied as 32 bits."""
        if self.is_short:
            self.lines[...] = pltpu.bitcast(self.landing[...], self.lines.dtype)

    def leave(self) -> None:
        """Make ready what is copied back."""
        if self.is_short:
            self.landing[...] = pltpu.bitcast(self.lines[...], self.landing.dtype)

    @property
    def held(self) -> Any:
        """Lines of 32 bits."""
        return self.lines if self.is_short else self.landing

    def unpack(self, frame: Any, row: Any) -> None:
        """Copy the values of a frame from its line to its chunk."""
        line = self.held[pl.ds(self.slots[row], 1), :]
        self.chunks[pl.ds(row, 1), :] = own_lanes(
            line, frame, self.width, is_short=self.is_short
        )

    def pack(self, frame: Any, row: Any, is_accepted: Any) -> None:
        """Copy them back."""
        here, first = pl.ds(self.slots[row], 1), frame % (LANES // self.width)
        first *= self.width
        lanes = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        is_own = (lanes >= first) & (lanes < first + self.width) & is_accepted
        line = self.held[here, :]
        new = pltpu.roll(self.chunks[pl.ds(row, 1), :], first, 1)
        if self.is_short:
            shift = half_shift(frame, self.width)
            new = (line & ~(HALF << shift)) | (new << shift)
        self.held[here, :] = jnp.where(is_own, new, line)


def _update_block(
    frames: Any,
    *refs: Any,
    widths: tuple[int, ...],
    kinds: list[int],
    update: Update,
    num_rows: int,
) -> None:
    """Step the frames of a block.

    Args:
      frames: `i32[B]`, scalars, in order.
      *refs: per kind `begins` and `slots` as for `_Held`; the operands; the arrays
        twice, as they come and to be written; `[1, 1, B]` what is accepted, to be
        written; `[B, 1]`, the same as a column; per array `landing`, then per array
        `lines`, then per array `chunks`; a semaphore per array.
      widths: per array.
      kinds: per array, which `begins` and `slots` are its own.
      update: of rows.
      num_rows: how many operands there are.
    """
    num_kinds, num_arrays = max(kinds) + 1, len(widths)
    numbered, refs = refs[: 2 * num_kinds], refs[2 * num_kinds :]
    rows, refs = refs[:num_rows], refs[num_rows:]
    # What comes is what is written: a line of the block before is read as it left it.
    arrays, refs = refs[num_arrays : 2 * num_arrays], refs[2 * num_arrays :]
    flags, accepted, *scratch = refs[:-1]
    landing, lines, chunks = (
        scratch[turn * num_arrays :][:num_arrays] for turn in range(3)
    )
    held = [
        _Held(
            array=arrays[number],
            begins=numbered[2 * kinds[number]],
            slots=numbered[2 * kinds[number] + 1],
            landing=landing[number],
            lines=lines[number],
            chunks=chunks[number],
            arrival=refs[-1].at[number],
            width=width,
        )
        for number, width in enumerate(widths)
    ]

    def for_lines(act: str, *, back: bool) -> None:
        def turn(row: Any, _: None) -> None:
            for one in held:

                @pl.when(one.begins[row] == 1)
                def _(one: _Held = one) -> None:
                    getattr(one.copy(frames[row], row, back=back), act)()

        lax.fori_loop(0, _BLOCK, turn, None)

    def unpack(row: Any, _: None) -> None:
        @pl.when(frames[row] != NULL_FRAME)
        def _() -> None:
            for one in held:
                one.unpack(frames[row], row)

        @pl.when(frames[row] == NULL_FRAME)
        def _() -> None:
            for one in held:
                one.chunks[pl.ds(row, 1), :] = jnp.zeros((1, LANES), one.chunks.dtype)

    def pack(row: Any, _: None) -> None:
        @pl.when(frames[row] != NULL_FRAME)
        def _() -> None:
            is_accepted = accepted[pl.ds(row, 1), :] > 0
            for one in held:
                one.pack(frames[row], row, is_accepted)

    for_lines("start", back=False)
    for_lines("wait", back=False)
    for one in held:
        one.arrive()
    lax.fori_loop(0, _BLOCK, unpack, None)
    windows = tuple(
        window_of_bits(one.chunks[:, : one.width], one.landing.dtype) for one in held
    )
    given = tuple(row[0] if len(row.shape) == 1 else row[...] for row in rows)
    windows, accepts = with_float_powers(update)(windows, given)
    for one, window in zip(held, windows, strict=True):
        one.chunks[:, : one.width] = bits_of_window(window.astype(one.landing.dtype))
    accepted[...] = accepts.astype(jnp.int32)
    square = (_BLOCK, _BLOCK)
    is_own = lax.broadcasted_iota(jnp.int32, square, 0) == lax.broadcasted_iota(
        jnp.int32, square, 1
    )
    as_lanes = jnp.where(is_own, jnp.broadcast_to(accepted[...], square), 0)
    flags[0] = jnp.sum(as_lanes, axis=0, keepdims=True)
    lax.fori_loop(0, _BLOCK, pack, None)
    for one in held:
        one.leave()
    for_lines("start", back=True)
    for_lines("wait", back=True)
