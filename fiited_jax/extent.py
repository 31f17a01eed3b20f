"""Extents: which chunks of a vector have a frame, in one small word per entry.

Ranked by length, a vector is a prefix of its chunks and the extent is how many there
are. Ranked chunk by chunk, it is a mask, bit j for chunk j. The chunks that are there
lie in consecutive frames, in their order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import gather_chunks, gather_runs, gather_windows

from .config import EmbeddingConfig
from .state import NO_ENTRY, NULL_FRAME, PageTable

__all__ = [
    "Runs",
    "chunk_at_rank",
    "common_extent",
    "extent_of",
    "first_chunks",
    "frame_of",
    "frames_of_entries",
    "frames_of_runs",
    "gather_vectors",
    "num_present",
    "present_chunks",
    "runs_of_entries",
]


def num_present(extent: jax.Array, config: EmbeddingConfig) -> jax.Array:
    """Count the chunks that are there, `i32[...]`."""
    if config.ranking == "chunks":
        extent = lax.population_count(extent)
    return extent.astype(jnp.int32)


def present_chunks(extent: jax.Array, config: EmbeddingConfig) -> jax.Array:
    """Tell which chunks are there, `bool[..., K]`."""
    one = jnp.ones((*extent.shape, 1), jnp.int32)
    chunks = _chunk_numbers(extent.shape, config)
    return frame_of(one, extent[..., None], chunks, config) != NULL_FRAME


def extent_of(present: jax.Array, config: EmbeddingConfig) -> jax.Array:
    """Return the extent of present chunks `bool[..., K]`.

    Ranked by length, they must be the first ones.
    """
    bits = present.astype(jnp.uint32)
    if config.ranking == "chunks":
        bits <<= _chunk_numbers(present.shape[:-1], config).astype(jnp.uint32)
    return jnp.sum(bits, axis=-1, dtype=jnp.uint32).astype(config.extent_dtype)


def first_chunks(count: jax.Array, config: EmbeddingConfig) -> jax.Array:
    """Return the extent of the first `count` chunks, `i32[...]`."""
    count = count.astype(jnp.uint32)
    if config.ranking == "chunks":
        # Two shifts: K may be 32, and a shift by the width is undefined.
        half = count // 2
        count = ~((~jnp.uint32(0) << half) << (count - half))
    return count.astype(config.extent_dtype)


def common_extent(
    left: jax.Array, right: jax.Array, config: EmbeddingConfig
) -> jax.Array:
    """Return the chunks that are there in both extents."""
    return jnp.minimum(left, right) if config.ranking == "lengths" else left & right


def frame_of(
    start: jax.Array, extent: jax.Array, chunk: jax.Array, config: EmbeddingConfig
) -> jax.Array:
    """Return the frame of a chunk.

    Args:
      start: `i32[...]` first frame of the run.
      extent: `[...]` which chunks there are.
      chunk: `i32[...]` number of the chunk.
      config: sizes and rules.

    Returns:
      `i32[...]`, `NULL_FRAME` if the chunk is not there.
    """
    wide = extent.astype(jnp.uint32)
    chunk = chunk.astype(jnp.uint32)
    if config.ranking == "lengths":
        is_present, rank = chunk < wide, chunk
    else:
        is_present = (wide >> chunk) & 1 > 0
        rank = lax.population_count(wide & ~(~jnp.uint32(0) << chunk))
    return jnp.where(is_present, start + rank.astype(jnp.int32), NULL_FRAME)


def chunk_at_rank(
    extent: jax.Array, rank: jax.Array, config: EmbeddingConfig
) -> jax.Array:
    """Return the chunk that lies `rank` frames after the start of its run.

    Args:
      extent: `[...]` which chunks there are.
      rank: `i32[...]`, less than there are.
      config: sizes and rules.

    Returns:
      `i32[...]`.
    """
    if config.ranking == "lengths":
        return rank
    wide, seen = extent.astype(jnp.uint32), jnp.zeros_like(rank)
    found = jnp.zeros_like(rank)
    for chunk in range(config.num_chunks):
        is_present = (wide >> chunk) & 1 > 0
        found = jnp.where(is_present & (seen == rank), chunk, found)
        seen += is_present
    return found


class Runs(NamedTuple):
    """Where the frames of entries are.

    Attributes:
      start: `[...]` first frames, as a page table holds them.
      extent: `[...]` which chunks there are; 0, none, where there is no entry.
    """

    start: jax.Array
    extent: jax.Array


def runs_of_entries(pages: PageTable, entries: jax.Array) -> Runs:
    """Load the runs of entries `i32[...]`, `NO_ENTRY` for none."""
    start, extent = (
        gather_windows(column, entries, 1)[..., 0]
        for column in (pages.start, pages.extent)
    )
    return Runs(start, jnp.where(entries == NO_ENTRY, 0, extent))


def frames_of_runs(runs: Runs, config: EmbeddingConfig) -> jax.Array:
    """Return the frames of all chunks of runs.

    Args:
      runs: `[...]`.
      config: sizes and rules.

    Returns:
      `i32[..., K]`, `NULL_FRAME` where there is no entry or no chunk.
    """
    chunks = _chunk_numbers(runs.start.shape, config)
    start = runs.start[..., None].astype(jnp.int32)
    return frame_of(start, runs.extent[..., None], chunks, config)


def frames_of_entries(
    pages: PageTable, entries: jax.Array, config: EmbeddingConfig
) -> jax.Array:
    """Return the frames of all chunks of entries, as `frames_of_runs` of their runs."""
    return frames_of_runs(runs_of_entries(pages, entries), config)


def gather_vectors(
    values: jax.Array,
    runs: Runs,
    config: EmbeddingConfig,
    fallback: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Read the vectors of entries.

    Args:
      values: of the pool.
      runs: `[...]` of the entries.
      config: sizes and rules.
      fallback: values of another pool, and `i32[..., K]` frames of it that stand in for
        absent chunks.

    Returns:
      `[..., K, C]`, zeros where there is no entry or no chunk, nor one in its place.
    """
    if config.ranking == "chunks":
        return gather_chunks(
            values,
            frames_of_runs(runs, config),
            config.chunk_dim,
            fallback=fallback,
            implementation=config.kernels,
        )
    return gather_runs(
        values,
        runs.start.astype(jnp.int32),
        runs.extent.astype(jnp.int32),
        config.chunk_dim,
        config.num_chunks,
        fallback=fallback,
        implementation=config.kernels,
    )


def _chunk_numbers(shape: tuple[int, ...], config: EmbeddingConfig) -> jax.Array:
    """Every chunk's number, `i32[*shape, K]`."""
    return lax.broadcasted_iota(jnp.int32, (*shape, config.num_chunks), len(shape))
