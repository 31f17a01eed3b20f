"""Kernels for the SparseCores of a TPU, by Pallas.

A SparseCore has subcores that move rows by lists of their numbers: a list of 128 is one
stream. A pool of lines is seen as rows of one chunk each, as it lies, so that a frame
takes no more than its own bytes. There is little arithmetic: XLA does that between.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import tpu_sc as plsc

from .lines import check_lines
from .places import frames_per_pool, merge_frames
from .reference import NULL_FRAME, Arrays, Fallback, Update

__all__ = ["gather_chunks", "update_chunks"]

_BLOCK = 128  # rows per stream, the longest list
_NARROWEST_ROW = 8  # values; XLA copies the pool for narrower rows


def gather_chunks(
    pool: jax.Array, frames: jax.Array, chunk_dim: int, fallback: Fallback = None
) -> jax.Array:
    """Read `pool[frames]`; see `pallas_kernels.api.gather_chunks`.

    Args:
      pool: `[L, 128]` lines of 32-bit values, C a divisor of 128; or `[P]` of them with
        P a multiple of 128.
      frames: `i32[...]`.
      chunk_dim: C, values per chunk.
      fallback: another pool like this, and its frames.

    Returns:
      `[..., C]`.

    Raises:
      NotImplementedError: on a pool that is not made of such lines, and on a chip
        without SparseCores.
    """
    pools, places = merge_frames(pool, frames, fallback)
    for name, one in zip(("a pool", "a fallback"), pools, strict=False):
        check_lines("sparsecore", name, one, flat=True)
    info = _sparse_core()
    if not frames.size:
        return jnp.zeros((*frames.shape, chunk_dim), pool.dtype)
    lists = [
        _whole_blocks(_row_numbers(one, chunk_dim), info)
        for one in frames_per_pool(places.reshape(-1), len(pools))
    ]
    rows = [_as_rows(one, chunk_dim) for one in pools]
    zeros = jnp.zeros((_BLOCK, *rows[0].shape[1:]), pool.dtype)
    chunks = _on_subcores(
        functools.partial(_gather_block, num_pools=len(pools)),
        info,
        name="gather_chunks",
        num_rows=lists[0].size,
        row=zeros,
        out_type=jax.ShapeDtypeStruct((lists[0].size, *zeros.shape[1:]), pool.dtype),
    )(*lists, zeros, *rows)
    # Cut while flat, and not before: XLA pads narrow rows to lines.
    chunks = lax.optimization_barrier(chunks.reshape(-1))[: places.size * chunk_dim]
    return chunks.reshape(*frames.shape, chunk_dim)


def update_chunks(
    arrays: Arrays,
    frames: jax.Array,
    operands: Arrays,
    update: Update,
    widths: tuple[int, ...],
) -> tuple[Arrays, jax.Array]:
    """Step frames of several arrays; see `pallas_kernels.api.update_chunks`.

    Args:
      arrays: each as a pool for `gather_chunks`.
      frames: `i32[n]`, distinct but for `NULL_FRAME`, all in range.
      operands: each `[n, k]` or a scalar.
      update: of rows.
      widths: per array, divisors of 128.

    Returns:
      The arrays, and `bool[n]` what was accepted.

    Raises:
      NotImplementedError: as `gather_chunks`.
    """
    windows = tuple(
        gather_chunks(array, frames, width)
        for array, width in zip(arrays, widths, strict=True)
    )
    windows, accepts = update(windows, operands)
    written = jnp.where(accepts[:, 0], frames, NULL_FRAME)
    arrays = tuple(
        _scatter_chunks(array, written, window)
        for array, window in zip(arrays, windows, strict=True)
    )
    return arrays, accepts[:, 0]


def _scatter_chunks(array: jax.Array, frames: jax.Array, chunks: jax.Array) -> Any:
    """Write chunks `[n, C]` in their place, none for a null frame."""
    if not frames.size:
        return array
    info, width = _sparse_core(), chunks.shape[1]
    numbers = _whole_blocks(_row_numbers(frames, width), info)
    held = jax.new_ref(_as_rows(array, width))
    flat = chunks.astype(array.dtype).reshape(-1)
    missing = numbers.size * math.prod(held.shape[1:]) - flat.size
    rows = _as_rows(jnp.pad(flat, (0, missing)), width)
    _on_subcores(
        _scatter_block,
        info,
        name="update_chunks",
        num_rows=numbers.size,
        row=rows,
        out_type=(),
    )(numbers, rows, held)
    return jax.freeze(held).reshape(array.shape)


def _sparse_core() -> Any:
    """Describe the SparseCores of the chip that is traced for."""
    needs = "implementation='sparsecore' needs a chip with SparseCores, as v5p and v6e"
    try:
        info = pltpu.get_tpu_info().sparse_core
    except ValueError as error:  # not a TPU
        raise NotImplementedError(f"{needs}; {error}") from error
    if info is None:
        raise NotImplementedError(needs)
    return info


def _as_rows(array: jax.Array, width: int) -> jax.Array:
    """See an array as what streams move: rows of a chunk, or single values."""
    return array.reshape((-1, width) if width >= _NARROWEST_ROW else -1)


def _row_numbers(frames: jax.Array, width: int) -> jax.Array:
    """Number the rows of frames `i32[n]`, `NULL_FRAME` for those of null frames.

    The null frame is at the start of a pool: no other has its first value.
    """
    if width >= _NARROWEST_ROW:
        return frames
    values = frames[:, None] * width + lax.iota(jnp.int32, width)[None, :]
    return jnp.where(frames[:, None] == NULL_FRAME, NULL_FRAME, values).reshape(-1)


def _whole_blocks(numbers: jax.Array, info: Any) -> jax.Array:
    """Fill up a list, so that every subcore has as many whole blocks."""
    group = _BLOCK * info.num_cores * info.num_subcores
    missing = -numbers.size % group
    return jnp.pad(numbers, (0, missing), constant_values=NULL_FRAME)


def _on_subcores(
    body: Any, info: Any, *, name: str, num_rows: int, row: jax.Array, out_type: Any
) -> Any:
    """Make a kernel that runs a body for every block of rows, on all subcores.

    Args:
      body: of a block, given its slice, the arguments, `i32[B]` and rows `[B, ...]`.
      info: of the chip.
      name: of the kernel.
      num_rows: in whole blocks.
      row: an array whose rows are like those that are moved.
      out_type: of the kernel.

    Returns:
      The kernel.
    """
    num_blocks = num_rows // (_BLOCK * info.num_cores * info.num_subcores)

    def run(*refs: Any) -> None:
        worker = lax.axis_index("subcore") * info.num_cores + lax.axis_index("core")

        @pl.loop(0, num_blocks)
        def _(block: Any) -> None:
            body(pl.ds((worker * num_blocks + block) * _BLOCK, _BLOCK), *refs)

    kernel: Any = pl.kernel
    return kernel(
        run,
        out_type=out_type,
        mesh=plsc.VectorSubcoreMesh(
            core_axis_name="core",
            subcore_axis_name="subcore",
            num_cores=info.num_cores,
            num_subcores=info.num_subcores,
        ),
        scratch_types=[
            pltpu.VMEM((_BLOCK,), jnp.int32),
            pltpu.VMEM((_BLOCK, *row.shape[1:]), row.dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            needs_layout_passes=False,
            use_tc_tiling_on_sc=False,  # rows as they lie, not in tiles
        ),
        name=name,
    )


def _gather_block(own: Any, *refs: Any, num_pools: int) -> None:
    """Read the rows of a block, none for a null frame.

    Args:
      own: slice of the block.
      *refs: per pool `i32[n]` which rows are read; zeros `[B, ...]`; the pools as rows;
        the rows, to be written; and of the subcore, `i32[B]` and `[B, ...]`.
      num_pools: one or two.
    """
    lists, (zeros, *pools, rows, numbers, held) = refs[:num_pools], refs[num_pools:]
    pltpu.sync_copy(zeros, held)
    for listed, pool in zip(lists, pools, strict=True):
        pltpu.sync_copy(listed.at[own], numbers)
        indices = plsc.Indices(numbers, ignored_value=NULL_FRAME)
        pltpu.sync_copy(pool.at[indices], held)
    pltpu.sync_copy(held, rows.at[own])


def _scatter_block(
    own: Any, listed: Any, rows: Any, array: Any, numbers: Any, held: Any
) -> None:
    """Write the rows of a block, none for a null frame.

    Args:
      own: slice of the block.
      listed: `i32[n]` which rows of the array are written.
      rows: `[n, ...]`.
      array: as rows.
      numbers: `i32[B]` of the subcore.
      held: `[B, ...]` of the subcore.
    """
    pltpu.sync_copy(listed.at[own], numbers)
    pltpu.sync_copy(rows.at[own], held)
    indices = plsc.Indices(numbers, ignored_value=NULL_FRAME)
    pltpu.sync_copy(held, array.at[indices])
