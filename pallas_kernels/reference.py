"""The kernels' meaning, in pure `jax.numpy`: runs everywhere, defines the results."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from .windows import gather_windows, num_windows, scatter_windows

__all__ = [
    "NO_WAY",
    "NULL_FRAME",
    "Update",
    "frames_of_runs",
    "gather_chunks",
    "gather_runs",
    "probe_and_load",
    "scatter_chunks",
    "update_chunks",
]

Arrays = tuple[jax.Array, ...]
Fallback = tuple[jax.Array, jax.Array] | None
Update = Callable[[Arrays, Arrays], tuple[Arrays, jax.Array]]

NULL_FRAME = 0  # the frame of an absent chunk: always zeros, never written
NO_WAY = -1  # what a probe answers for a key that is not there


def gather_chunks(
    pool: jax.Array, frames: jax.Array, chunk_dim: int, fallback: Fallback = None
) -> jax.Array:
    """Read `pool[frames]`; see `pallas_kernels.api.gather_chunks`."""
    chunks = gather_windows(pool, frames, chunk_dim)
    return _or_fallback(chunks, frames, fallback)


def gather_runs(
    pool: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    chunk_dim: int,
    num_chunks: int,
    fallback: Fallback = None,
) -> jax.Array:
    """Read runs of frames; see `pallas_kernels.api.gather_runs`."""
    chunks = lax.broadcasted_iota(jnp.int32, (*starts.shape, num_chunks), starts.ndim)
    is_held = chunks < lengths[..., None]

    # A run is consecutive in memory: one read, and what lies behind it is blanked.
    def by_runs() -> jax.Array:
        numbers = lax.GatherDimensionNumbers((1,), (), (0,))
        windows = lax.gather(
            pool.reshape(-1),
            jnp.where(lengths > 0, starts, 0).reshape(-1, 1) * chunk_dim,
            numbers,
            (num_chunks * chunk_dim,),
            mode=lax.GatherScatterMode.CLIP,
        )
        windows = windows.reshape(*is_held.shape, chunk_dim)
        return jnp.where(is_held[..., None], windows, 0)

    def by_chunks() -> jax.Array:
        # Not those below: this is seldom called, and what it needs with it.
        frames = frames_of_runs(starts, lengths, num_chunks)
        return gather_windows(pool, frames, chunk_dim)

    frames = frames_of_runs(starts, lengths, num_chunks)
    last = pool.size // chunk_dim - num_chunks
    if last < 0:
        return _or_fallback(by_chunks(), frames, fallback)
    leaves_pool = jnp.any((lengths > 0) & (starts > last))
    chunks = lax.cond(leaves_pool, by_chunks, by_runs)
    return _or_fallback(chunks, frames, fallback)


def frames_of_runs(starts: jax.Array, lengths: jax.Array, num_chunks: int) -> jax.Array:
    """Return the frames of runs, `i32[..., K]`, `NULL_FRAME` behind their end."""
    chunks = lax.broadcasted_iota(jnp.int32, (*starts.shape, num_chunks), starts.ndim)
    return jnp.where(
        chunks < lengths[..., None], starts[..., None] + chunks, NULL_FRAME
    )


def _or_fallback(chunks: jax.Array, frames: jax.Array, fallback: Fallback) -> jax.Array:
    """Read elsewhere what null frames lack, if there is such a place."""
    if fallback is None:
        return chunks
    others = gather_windows(*fallback, chunks.shape[-1])
    return jnp.where(frames[..., None] != NULL_FRAME, chunks, others)


def scatter_chunks(pool: jax.Array, frames: jax.Array, chunks: jax.Array) -> jax.Array:
    """Write `pool[frames] = chunks`; see `pallas_kernels.api.scatter_chunks`."""
    return scatter_windows(pool, jnp.where(frames == NULL_FRAME, -1, frames), chunks)


def probe_and_load(
    words: Arrays,
    queries: Arrays,
    buckets: jax.Array,
    num_ways: int,
    columns: Arrays,
) -> tuple[jax.Array, Arrays]:
    """Find each query in its bucket; see `pallas_kernels.api.probe_and_load`."""
    match = jnp.ones((*buckets.shape, num_ways), bool)
    for word, query in zip(words, queries, strict=True):
        match &= gather_windows(word, buckets, num_ways) == query[..., None]
    ways = lax.broadcasted_iota(jnp.int32, match.shape, match.ndim - 1)
    way = jnp.min(jnp.where(match, ways, num_ways), axis=-1)
    is_found = way < num_ways
    entries = jnp.where(is_found, buckets * num_ways + way, 0)
    loaded = tuple(
        jnp.where(is_found, gather_windows(column, entries, 1)[..., 0], 0)
        for column in columns
    )
    return jnp.where(is_found, way, NO_WAY), loaded


def update_chunks(
    arrays: Arrays,
    frames: jax.Array,
    operands: Arrays,
    update: Update,
    widths: tuple[int, ...],
) -> tuple[Arrays, jax.Array]:
    """Step frames of several arrays; see `pallas_kernels.api.update_chunks`."""
    windows = tuple(
        gather_windows(array, frames, width)
        for array, width in zip(arrays, widths, strict=True)
    )
    windows, accepts = update(windows, operands)
    # Not before they are read: who has read the same frames shares that with us.
    pairs = zip(arrays, widths, strict=True)
    last = min(num_windows(array, width) for array, width in pairs) - 1
    is_written = accepts[:, 0] & (frames > NULL_FRAME) & (frames <= last)
    written = jnp.where(is_written, frames, -1)
    arrays = tuple(
        scatter_windows(array, written, window)
        for array, window in zip(arrays, windows, strict=True)
    )
    return arrays, accepts[:, 0]
