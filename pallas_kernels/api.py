"""The functions that callers use: what they mean, and checks of what is given."""

import jax
import jax.numpy as jnp
import numpy as np

from . import dispatch, reference
from .checks import (
    check_distinct,
    check_fallback,
    check_implementation,
    check_in_range,
    check_int32,
    check_update,
)
from .dispatch import Implementation
from .reference import Arrays, Fallback, Update
from .windows import num_windows

__all__ = [
    "Implementation",
    "gather_chunks",
    "gather_runs",
    "probe_and_load",
    "probe_page_table",
    "scatter_chunks",
    "update_chunks",
]


def gather_chunks(
    pool: jax.Array,
    frames: jax.Array,
    chunk_dim: int,
    *,
    fallback: Fallback = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Read chunks of a pool by frame number.

    Args:
      pool: `[P * C]` flat or `[L, w]` lines with `w` a multiple of C; any dtype.
        Frame `NULL_FRAME` holds zeros.
      frames: `i32[...]` frame numbers in `[0, P)`; what others read is undefined, in
        `debug_mode` an error.
      chunk_dim: C, values per chunk.
      fallback: `(pool, frames)`, what is read for `NULL_FRAME`, by kernels in the same
        pass: a pool of the dtype of the first, and as many frame numbers in it.
      implementation: `"xla"`; `"mosaic_tpu"` for a pool `[L, 128]` of 32-bit values, or
        of 16-bit ones but float16 with L even, on a TPU, and `"sparsecore"` for one of
        32-bit values, or `[P]` of them with P a multiple of 128, on a TPU with
        SparseCores; `"triton"` for a C that is a power of 2 on an NVIDIA GPU;
        `"mosaic_gpu"` for chunks of a multiple of 128 bytes on one from Hopper on. They
        have been compiled for such chips, the last one only lowered, and not yet run on
        any, so `None` chooses `"xla"`. They do not lower for other platforms, nor under
        `jax.vmap` on a TPU.

    Returns:
      `[..., C]`, the dtype of `pool`; exact copies.

    Raises:
      ValueError: on a pool that C does not tile, and on a fallback that does not fit.
      TypeError: on frame numbers that are not int32.
      NotImplementedError: on an implementation that is not there or cannot do this.

    >>> pool = jnp.array([0.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    >>> gather_chunks(pool, jnp.array([2, 0]), 2)
    Array([[3., 4.],
           [0., 0.]], dtype=float32)
    >>> gather_chunks(pool, jnp.array([2, 0]), 2, fallback=(-pool, jnp.array([0, 1])))
    Array([[ 3.,  4.],
           [-1., -2.]], dtype=float32)
    """
    check_implementation(
        implementation, "mosaic_gpu", "mosaic_tpu", "sparsecore", "triton"
    )
    check_int32("frames", frames)
    check_in_range("frames", frames, num_windows(pool, chunk_dim))
    check_fallback(fallback, pool, frames.shape, chunk_dim)
    if implementation in (None, "xla"):
        return reference.gather_chunks(pool, frames, chunk_dim, fallback)
    return dispatch.gather_chunks(implementation, chunk_dim, pool, frames, fallback)


def gather_runs(
    pool: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    chunk_dim: int,
    num_chunks: int,
    *,
    fallback: Fallback = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Read runs of consecutive chunks.

    Args:
      pool: `[P * C]` flat or `[L, w]` lines with `w` a multiple of C; any dtype.
      starts: `i32[...]` first frames; where a run has a length, it lies in the pool.
      lengths: `i32[...]` chunks per run, 0 to K.
      chunk_dim: C, values per chunk.
      num_chunks: K, chunks to return.
      fallback: `(pool, i32[..., K] frames)`, what is read behind the end of a run, as
        for `gather_chunks`.
      implementation: as for `gather_chunks`. XLA reads a run at once, kernels read its
        chunks.

    Returns:
      `[..., K, C]`, the dtype of `pool`; exact copies, zeros behind the end of a run
      unless there is a fallback.

    Raises:
      ValueError: on a pool that C does not tile, and on a fallback that does not fit.
      TypeError: on starts or lengths that are not int32.
      NotImplementedError: on an implementation that is not there or cannot do this.

    >>> pool = jnp.array([0.0, 1.0, 2.0, 3.0])
    >>> gather_runs(pool, jnp.array([1, 3]), jnp.array([2, 1]), 1, 3)[..., 0]
    Array([[1., 2., 0.],
           [3., 0., 0.]], dtype=float32)
    """
    check_int32("starts", starts)
    check_int32("lengths", lengths)
    frames = reference.frames_of_runs(starts, lengths, num_chunks)
    if implementation not in (None, "xla"):
        return gather_chunks(
            pool, frames, chunk_dim, fallback=fallback, implementation=implementation
        )
    check_in_range("frames of runs", frames, num_windows(pool, chunk_dim))
    check_fallback(fallback, pool, (*starts.shape, num_chunks), chunk_dim)
    return reference.gather_runs(pool, starts, lengths, chunk_dim, num_chunks, fallback)


def scatter_chunks(
    pool: jax.Array,
    frames: jax.Array,
    chunks: jax.Array,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Overwrite chunks of a pool by frame number.

    Args:
      pool: `[P * C]` flat or `[L, w]` lines with `w` a multiple of C.
      frames: `i32[...]`; `NULL_FRAME`, negative and too large numbers write nothing,
        all others are distinct.
      chunks: `[..., C]`, cast to the dtype of `pool`.
      implementation: as for `update_chunks`.

    Returns:
      The updated pool; in place where the caller donates it.

    Raises:
      ValueError: on shapes that do not fit.
      TypeError: on frame numbers that are not int32.
      NotImplementedError: on an implementation that is not there or cannot do this.

    >>> scatter_chunks(jnp.zeros(4), jnp.array([1, 0]), jnp.ones((2, 2)))
    Array([0., 0., 1., 1.], dtype=float32)
    """
    check_implementation(implementation, "mosaic_tpu", "sparsecore", "triton")
    check_int32("frames", frames)
    if chunks.shape[:-1] != frames.shape:
        raise ValueError(
            f"chunks must have shape {frames.shape} + (C,), got {chunks.shape}"
        )
    chunk_dim = chunks.shape[-1]
    check_distinct("frames", frames.reshape(-1), num_windows(pool, chunk_dim))
    if implementation in (None, "xla"):
        return reference.scatter_chunks(pool, frames, chunks)
    return dispatch.scatter_chunks(implementation, pool, frames, chunks)


def update_chunks(
    arrays: Arrays,
    frames: jax.Array,
    operands: Arrays,
    update: Update,
    widths: tuple[int, ...],
    *,
    implementation: Implementation | None = None,
) -> tuple[Arrays, jax.Array]:
    """Read chunks of several arrays, work out new ones, and write them in their place.

    One pass over values and optimizer state of the frames that a batch touches; nothing
    else of the arrays is read or written.

    Args:
      arrays: each `[P * w]` flat or `[L, l]` lines with `l` a multiple of its width w;
        donate them.
      frames: `i32[n]`, distinct but for `NULL_FRAME`; `NULL_FRAME`, negative numbers
        and those that one of the arrays does not have write nothing. What comes twice
        is undefined, in `debug_mode` an error.
      operands: what else the update needs, arrays, each `[n, k]` or a scalar `[]`.
      update: `update(windows, operands) -> windows, accepts`, of windows `[m, w]` per
        array, the m rows of the operands that belong to them, and `bool[m, 1]`: what is
        not accepted is left as it is. Traced, with any m; each row by itself, no arrays
        but its arguments. Not differentiated.
      widths: w per array, values per frame.
      implementation: `"xla"`; `"mosaic_tpu"` for lines `[L, 128]` of 32-bit values, or
        of `uint16` or `bfloat16` with L even, or for 32-bit values `[P]` with P a
        multiple of 128, and widths that divide 128, on a TPU; `"sparsecore"` for the
        same of 32 bits on a TPU with SparseCores, which read and write while XLA works
        out; `"triton"` for widths that are powers of 2, on an NVIDIA GPU. They have
        been compiled for such chips and not yet run on any, so `None` chooses `"xla"`.

    Returns:
      The arrays, in place where the caller donates them; and `bool[n]`, what was
      accepted, of frames that are not written too.

    Raises:
      ValueError: on shapes that do not fit.
      TypeError: on frame numbers that are not int32.
      NotImplementedError: on an implementation that is not there or cannot do this.

    >>> def descend(windows, operands):
    ...     new = windows[0] - 0.5 * operands[0]
    ...     return (new,), jnp.all(jnp.isfinite(new), axis=-1, keepdims=True)
    >>> update_chunks(
    ...     (jnp.zeros(6),), jnp.array([2, 0]), (jnp.ones((2, 2)),), descend, (2,))
    ((Array([ 0. ,  0. ,  0. ,  0. , -0.5, -0.5], dtype=float32),), \
Array([ True,  True], dtype=bool))
    """
    check_implementation(implementation, "mosaic_tpu", "sparsecore", "triton")
    check_int32("frames", frames)
    if frames.ndim != 1:
        raise ValueError(f"frames must have shape (n,), got {frames.shape}")
    if len(arrays) != len(widths) or not arrays:
        raise ValueError(
            f"widths must have one number per array, got {len(widths)} for "
            f"{len(arrays)} arrays"
        )
    counts = {
        num_windows(array, width) for array, width in zip(arrays, widths, strict=True)
    }
    for number, operand in enumerate(operands):
        if not isinstance(operand, jax.Array | np.ndarray):
            raise TypeError(f"operands[{number}] must be an array, got {operand!r}")
        if operand.ndim and operand.shape[:-1] != frames.shape:
            raise ValueError(
                f"operands must have shape ({frames.size}, k) or (), got "
                f"{operand.shape}"
            )
    check_distinct("frames", frames, min(counts))
    check_update(update, arrays, widths, operands, frames.size)
    if implementation in (None, "xla"):
        return reference.update_chunks(arrays, frames, operands, update, widths)
    return dispatch.update_chunks(
        implementation, arrays, frames, operands, update, widths
    )


def probe_page_table(
    words: Arrays,
    queries: Arrays,
    buckets: jax.Array,
    num_ways: int,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Find keys of several words in the buckets they may live in.

    Args:
      words: the table's key words, each `[num_buckets * W]` flat.
      queries: the words looked for, each `[...]`, one per entry of `words`.
      buckets: `i32[...]` the bucket of each query, in range.
      num_ways: W, ways per bucket.
      implementation: `"xla"`; `"mosaic_tpu"` for a W that divides 128 and flat words of
        a multiple of 512 bytes, on a TPU; `"triton"` for a W that is a power of 2, on
        an NVIDIA GPU. Both read the bucket's words in one pass, with nothing `[..., W]`
        in memory. They have been compiled for such chips and not yet run on any, so
        `None` chooses `"xla"`.

    Returns:
      `i32[...]`, the way whose words all match, or `NO_WAY`.

    Raises:
      ValueError: on word counts or shapes that do not fit.
      TypeError: on buckets that are not int32.
      NotImplementedError: on an implementation that is not there or cannot do this.

    >>> words = (jnp.array([5, 7, 9, 5]),)
    >>> probe_page_table(words, (jnp.array([5, 5, 8]),), jnp.array([0, 1, 1]), 2)
    Array([ 0,  1, -1], dtype=int32)
    """
    return probe_and_load(
        words, queries, buckets, num_ways, (), implementation=implementation
    )[0]


def probe_and_load(
    words: Arrays,
    queries: Arrays,
    buckets: jax.Array,
    num_ways: int,
    columns: Arrays,
    *,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, Arrays]:
    """Find keys, and load what their entries hold in the same pass.

    Args:
      words: as for `probe_page_table`.
      queries: as for `probe_page_table`.
      buckets: as for `probe_page_table`.
      num_ways: W, ways per bucket.
      columns: what is loaded, each like a word: integers `[num_buckets * W]`.
      implementation: as for `probe_page_table`.

    Returns:
      As `probe_page_table`; and per column `[...]` of its dtype what the entry of the
      key holds, 0 for a key that is not there.

    Raises:
      ValueError, TypeError, NotImplementedError: as `probe_page_table`, of columns too.

    >>> words, column = (jnp.array([5, 7, 9, 5]),), jnp.array([10, 11, 12, 13])
    >>> probe_and_load(words, (jnp.array([7, 8]),), jnp.array([0, 1]), 2, (column,))
    (Array([ 1, -1], dtype=int32), (Array([11,  0], dtype=int32),))
    """
    check_implementation(implementation, "mosaic_tpu", "triton")
    check_int32("buckets", buckets)
    if len(words) != len(queries) or not words:
        raise ValueError(
            f"queries must have one array per key word, got {len(queries)} for "
            f"{len(words)} words"
        )
    for word, query in zip(words, queries, strict=True):
        num_windows(word, num_ways)
        if query.shape != buckets.shape or query.dtype != word.dtype:
            raise ValueError(
                f"queries must have the shape of buckets {buckets.shape} and the "
                f"dtype of their word {word.dtype}, got {query.dtype}{query.shape}"
            )
    for number, column in enumerate(columns):
        is_integer = jnp.issubdtype(column.dtype, jnp.integer)
        if column.shape != words[0].shape or not is_integer:
            raise ValueError(
                f"columns[{number}] must hold integers of shape {words[0].shape}, got "
                f"{column.dtype}{column.shape}"
            )
    check_in_range("buckets", buckets, words[0].size // num_ways)
    if implementation in (None, "xla"):
        return reference.probe_and_load(words, queries, buckets, num_ways, columns)
    return dispatch.probe_and_load(
        implementation, words, queries, buckets, num_ways, columns
    )
