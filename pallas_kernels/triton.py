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

from .places import merge_frames
from .reference import NO_WAY, NULL_FRAME, Arrays, Fallback, Update

__all__ = ["gather_chunks", "probe_and_load", "update_chunks"]

_FLOATS = (jnp.float32, jnp.float16, jnp.bfloat16)
_VALUES = 2048  # per program
_NUM_WARPS = 4


def gather_chunks(
    pool: jax.Array,
    frames: jax.Array,
    chunk_dim: int,
    fallback: Fallback = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Read `pool[frames]`; see `pallas_kernels.api.gather_chunks`.

    Args:
      pool: `[P * C]` or lines `[L, w]`, fewer than 2^31 values.
      frames: `i32[...]`.
      chunk_dim: C, a power of 2.
      fallback: another pool like this, and its frames.
      interpret: as for `pl.pallas_call`.

    Returns:
      `[..., C]`.

    Raises:
      NotImplementedError: on another C, and on a larger pool.
    """
    pools, places = merge_frames(pool, frames, fallback)
    _check("chunk_dim", chunk_dim, pool)
    block = max(_VALUES // chunk_dim, 1)
    num_blocks = -(-places.size // block)
    most = max(one.size for one in pools)
    if max(most, num_blocks * block * chunk_dim) >= 1 << 31:
        raise NotImplementedError(
            "implementation='triton' needs pools and result to have fewer than 2^31 "
            f"values, got {most} and shape {(*frames.shape, chunk_dim)}"
        )
    if not num_blocks:
        return jnp.zeros((*frames.shape, chunk_dim), pool.dtype)
    chunks = pl.pallas_call(
        functools.partial(_gather_block, block=block, chunk_dim=chunk_dim),
        out_shape=jax.ShapeDtypeStruct((places.size, chunk_dim), pool.dtype),
        grid=(num_blocks,),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * (1 + len(pools)),
        out_specs=pl.BlockSpec(memory_space=pl.ANY),
        compiler_params=plgpu.CompilerParams(num_warps=_NUM_WARPS),
        interpret=interpret,
        name="gather_chunks",
    )(places.reshape(-1), *(one.reshape(-1) for one in pools))
    return chunks.reshape(*frames.shape, chunk_dim)


def _gather_block(places: Any, *refs: Any, block: int, chunk_dim: int) -> None:
    """Read the chunks of a block; a null frame reads nothing.

    Args:
      places: `i32[n]`, as `merge_frames` returns them.
      *refs: the pools, each `[P * C]`; and `[n, C]` the chunks, to be written.
      block: frames per program.
      chunk_dim: C.
    """
    *pools, chunks = refs
    rows = pl.program_id(0) * block + jnp.arange(block)
    columns = jnp.arange(chunk_dim)[None, :]
    exists = rows < places.shape[0]
    place = plgpu.load(places.at[rows], mask=exists, other=NULL_FRAME)
    values = jnp.zeros((block, chunk_dim), chunks.dtype)
    for pool, frame in zip(pools, (place, -place), strict=False):
        is_read = jnp.broadcast_to((frame > NULL_FRAME)[:, None], values.shape)
        values = plgpu.load(
            pool.at[frame[:, None] * chunk_dim + columns], mask=is_read, other=values
        )
    plgpu.store(
        chunks.at[rows[:, None], columns],
        values,
        mask=jnp.broadcast_to(exists[:, None], values.shape),
    )


def probe_and_load(
    words: Arrays,
    queries: Arrays,
    buckets: jax.Array,
    num_ways: int,
    columns: Arrays,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, Arrays]:
    """Find each query in its bucket; see `pallas_kernels.api.probe_and_load`.

    Args:
      words: each `[num_buckets * W]` integers, fewer than 2^31.
      queries: each `[...]`, one per word.
      buckets: `i32[...]`, all in range.
      num_ways: W, a power of 2.
      columns: each `[num_buckets * W]` integers.
      interpret: as for `pl.pallas_call`.

    Returns:
      `i32[...]` ways, and per column what is loaded.

    Raises:
      NotImplementedError: on another W, and on longer words.
    """
    for word in words:
        _check("num_ways", num_ways, word)
    block = max(_VALUES // num_ways, 1)
    num_blocks = -(-buckets.size // block)
    if max(words[0].size, num_blocks * block) >= 1 << 31:
        raise NotImplementedError(
            "implementation='triton' needs words and queries of fewer than 2^31, got "
            f"shapes {words[0].shape} and {buckets.shape}"
        )
    dtypes = [jnp.dtype(jnp.int32), *(column.dtype for column in columns)]
    if not num_blocks:
        ways, *loaded = (jnp.zeros(buckets.shape, dtype) for dtype in dtypes)
        return ways, tuple(loaded)
    ways, *loaded = pl.pallas_call(
        functools.partial(
            _probe_block, block=block, num_ways=num_ways, num_words=len(words)
        ),
        out_shape=[jax.ShapeDtypeStruct((buckets.size,), dtype) for dtype in dtypes],
        grid=(num_blocks,),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)]
        * (1 + 2 * len(words) + len(columns)),
        out_specs=[pl.BlockSpec(memory_space=pl.ANY)] * len(dtypes),
        compiler_params=plgpu.CompilerParams(num_warps=_NUM_WARPS),
        interpret=interpret,
        name="probe_page_table",
    )(
        buckets.reshape(-1),
        *(query.reshape(-1) for query in queries),
        *(word.reshape(-1) for word in words),
        *(column.reshape(-1) for column in columns),
    )
    return ways.reshape(buckets.shape), tuple(
        one.reshape(buckets.shape) for one in loaded
    )


def _probe_block(
    buckets: Any, *refs: Any, block: int, num_ways: int, num_words: int
) -> None:
    """Compare the queries of a block with the ways of their buckets.

    Args:
      buckets: `i32[n]`.
      *refs: `[n]` per word what is looked for; the words, then the columns, each
        `[num_buckets * W]`; `i32[n]` the ways and `[n]` per column what it holds, to be
        written.
      block: queries per program.
      num_ways: W.
      num_words: of a key.
    """
    queries, refs = refs[:num_words], refs[num_words:]
    words, refs = refs[:num_words], refs[num_words:]
    num_columns = len(refs) // 2
    columns, (found, *loaded) = refs[:num_columns], refs[num_columns:]
    rows = pl.program_id(0) * block + jnp.arange(block)
    ways = jnp.arange(num_ways)[None, :]
    exists = rows < buckets.shape[0]
    bucket = plgpu.load(buckets.at[rows], mask=exists, other=0)
    places = bucket[:, None] * num_ways + ways
    matches = is_read = jnp.broadcast_to(exists[:, None], places.shape)
    for query, word in zip(queries, words, strict=True):
        wanted = plgpu.load(query.at[rows], mask=exists, other=0)
        held = plgpu.load(word.at[places], mask=is_read, other=0)
        matches &= held == wanted[:, None]
    way = jnp.min(jnp.where(matches, ways, num_ways), axis=1).astype(jnp.int32)
    is_found = way < num_ways
    plgpu.store(found.at[rows], jnp.where(is_found, way, NO_WAY), mask=exists)
    entry = bucket * num_ways + way
    for column, out in zip(columns, loaded, strict=True):
        held = plgpu.load(column.at[entry], mask=is_found, other=0)
        plgpu.store(out.at[rows], held, mask=exists)


def update_chunks(
    arrays: Arrays,
    frames: jax.Array,
    operands: Arrays,
    update: Update,
    widths: tuple[int, ...],
    *,
    interpret: bool = False,
) -> tuple[Arrays, jax.Array]:
    """Step frames of several arrays; see `pallas_kernels.api.update_chunks`.

    Args:
      arrays: each fewer than 2^31 values.
      frames: `i32[n]`, distinct but for `NULL_FRAME`, all in range.
      operands: each `[n, k]` with k a power of 2, or a scalar.
      update: of rows.
      widths: per array, powers of 2.
      interpret: as for `pl.pallas_call`.

    Returns:
      The arrays, and `bool[n]` what was accepted.

    Raises:
      NotImplementedError: on other widths, and on larger arrays.
    """
    for number, (array, width) in enumerate(zip(arrays, widths, strict=True)):
        _check(f"widths[{number}]", width, array)
    for number, operand in enumerate(operands):
        if operand.ndim:
            _check(f"operands[{number}].shape[1]", operand.shape[1], operand)
    row_widths = [one.shape[1] if one.ndim else None for one in operands]
    widest = max(*widths, *(width or 1 for width in row_widths))
    block = max(_VALUES // widest, 1)
    num_blocks = -(-frames.size // block)
    most = max(array.size for array in arrays)
    if max(most, num_blocks * block * widest) >= 1 << 31:
        raise NotImplementedError(
            "implementation='triton' needs arrays and gradients to have fewer than "
            f"2^31 values, got {most} and {frames.size} rows"
        )
    if not num_blocks:
        return arrays, jnp.zeros(0, bool)
    # A scalar is a row that all programs read.
    rows = [
        operand.reshape(-1) if operand.ndim else operand[None] for operand in operands
    ]
    flat = [array.reshape(-1) for array in arrays]
    first = 1 + len(rows)
    *new, accepts = pl.pallas_call(
        functools.partial(
            _update_block,
            block=block,
            update=update,
            widths=widths,
            row_widths=row_widths,
        ),
        out_shape=[
            *(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in flat),
            jax.ShapeDtypeStruct(frames.shape, jnp.int32),
        ],
        grid=(num_blocks,),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * (first + len(flat)),
        out_specs=[pl.BlockSpec(memory_space=pl.ANY)] * (len(flat) + 1),
        input_output_aliases={first + number: number for number in range(len(flat))},
        compiler_params=plgpu.CompilerParams(num_warps=_NUM_WARPS),
        interpret=interpret,
        name="update_chunks",
    )(frames, *rows, *flat)
    shaped = zip(new, arrays, strict=True)
    return tuple(one.reshape(array.shape) for one, array in shaped), accepts > 0


def _update_block(
    frames: Any,
    *refs: Any,
    block: int,
    update: Update,
    widths: tuple[int, ...],
    row_widths: list[int | None],
) -> None:
    """Step the frames of a block, each of its own: no two programs share one.

    Args:
      frames: `i32[n]`.
      *refs: the operands, flat; the arrays twice, as they come and to be written; and
        `i32[n]` what is accepted, to be written.
      block: frames per program.
      update: of rows.
      widths: per array.
      row_widths: per operand, `None` for a scalar.
    """
    num_rows, num_arrays = len(row_widths), len(widths)
    rows_in, arrays = refs[:num_rows], refs[num_rows : num_rows + num_arrays]
    *new_arrays, accepted = refs[num_rows + num_arrays :]
    row = pl.program_id(0) * block + jnp.arange(block)
    exists = row < frames.shape[0]
    frame = plgpu.load(frames.at[row], mask=exists, other=NULL_FRAME)

    def places(index: jax.Array, width: int) -> jax.Array:
        return index[:, None] * width + jnp.arange(width)[None, :]

    def spread(mask: jax.Array, width: int) -> jax.Array:
        return jnp.broadcast_to(mask[:, None], (block, width))

    given = tuple(
        plgpu.load(operand.at[jnp.int32(0)])
        if width is None
        else plgpu.load(
            operand.at[places(row, width)], mask=spread(exists, width), other=0
        )
        for operand, width in zip(rows_in, row_widths, strict=True)
    )
    is_real = frame != NULL_FRAME
    windows = tuple(
        plgpu.load(array.at[places(frame, width)], mask=spread(is_real, width), other=0)
        for array, width in zip(arrays, widths, strict=True)
    )
    windows, accepts = update(windows, given)
    for array, window, width in zip(new_arrays, windows, widths, strict=True):
        mask = spread(is_real, width) & jnp.broadcast_to(accepts, (block, width))
        plgpu.store(
            array.at[places(frame, width)], window.astype(array.dtype), mask=mask
        )
    flags = jnp.sum(accepts.astype(jnp.int32), axis=1)
    plgpu.store(accepted.at[row], flags, mask=exists)


def _check(name: str, width: int, array: jax.Array) -> None:
    """Refuse widths and dtypes that Triton does not load."""
    if width < 1 or width & (width - 1):
        raise NotImplementedError(
            f"implementation='triton' needs a {name} that is a power of 2, got {width}"
        )
    if not (jnp.issubdtype(array.dtype, jnp.integer) or array.dtype in _FLOATS):
        raise NotImplementedError(
            "implementation='triton' needs arrays of integers, float32, float16 or "
            f"bfloat16, got {array.dtype}"
        )
