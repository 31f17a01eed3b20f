"""The kernels' meaning, in pure `jax.numpy`: runs everywhere, defines the results."""

import jax
import jax.numpy as jnp

from .windows import gather_windows, scatter_windows

__all__ = [
    "NO_WAY",
    "NULL_FRAME",
    "gather_chunks",
    "probe_page_table",
    "scatter_chunks",
]

NULL_FRAME = 0  # the frame of an absent chunk: always zeros, never written
NO_WAY = -1  # what a probe answers for a key that is not there


def gather_chunks(pool: jax.Array, frames: jax.Array, chunk_dim: int) -> jax.Array:
    """Read `pool[frames]`; see `pallas_kernels.api.gather_chunks`."""
    return gather_windows(pool, frames, chunk_dim)


def scatter_chunks(pool: jax.Array, frames: jax.Array, chunks: jax.Array) -> jax.Array:
    """Write `pool[frames] = chunks`; see `pallas_kernels.api.scatter_chunks`."""
    return scatter_windows(pool, jnp.where(frames == NULL_FRAME, -1, frames), chunks)


def probe_page_table(
    words: tuple[jax.Array, ...],
    queries: tuple[jax.Array, ...],
    buckets: jax.Array,
    num_ways: int,
) -> jax.Array:
    """Find each query in its bucket; see `pallas_kernels.api.probe_page_table`."""
    match = jnp.ones((*buckets.shape, num_ways), bool)
    for word, query in zip(words, queries, strict=True):
        match &= gather_windows(word, buckets, num_ways) == query[..., None]
    way = jnp.argmax(match, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(match, axis=-1), way, NO_WAY)
