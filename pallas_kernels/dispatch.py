"""Operations by kernels: which module does them, and their gradients.

Modules are imported where they are used: JAX may drop what one of them needs, and the
others must still be there.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from . import reference
from .reference import NULL_FRAME, Arrays, Fallback, Update
from .windows import num_windows

__all__ = [
    "Implementation",
    "gather_chunks",
    "probe_and_load",
    "scatter_chunks",
    "update_chunks",
]

Implementation = Literal["xla", "mosaic_gpu", "mosaic_tpu", "sparsecore", "triton"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def gather_chunks(
    implementation: Implementation,
    chunk_dim: int,
    pool: jax.Array,
    frames: jax.Array,
    fallback: Fallback,
) -> jax.Array:
    """Read chunks; see `pallas_kernels.api.gather_chunks`."""
    if implementation == "triton":
        from .triton import gather_chunks as gather
    elif implementation == "sparsecore":
        from .sparsecore import gather_chunks as gather
    elif implementation == "mosaic_gpu":
        from .mosaic_gpu import gather_chunks as gather
    else:
        from .mosaic_tpu import gather_chunks as gather
    return gather(pool, frames, chunk_dim, fallback)


def _gather_forward(
    implementation: Implementation,
    chunk_dim: int,
    pool: jax.Array,
    frames: jax.Array,
    fallback: Fallback,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Fallback]]:
    chunks: Any = gather_chunks(implementation, chunk_dim, pool, frames, fallback)
    return chunks, (pool, frames, fallback)


def _gather_backward(
    implementation: Implementation,
    chunk_dim: int,
    residuals: tuple[jax.Array, jax.Array, Fallback],
    cotangents: jax.Array,
) -> tuple[jax.Array, None, tuple[jax.Array, None] | None]:
    pool, frames, fallback = residuals
    pools = (pool,) if fallback is None else (pool, fallback[0])

    def gather(*pools: jax.Array) -> jax.Array:
        again = None if fallback is None else (pools[1], fallback[1])
        return reference.gather_chunks(pools[0], frames, chunk_dim, again)

    _, transpose = jax.vjp(gather, *pools)
    of_pool, *of_others = transpose(cotangents)
    return of_pool, None, (of_others[0], None) if of_others else None


gather_chunks.defvjp(_gather_forward, _gather_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scatter_chunks(
    implementation: Implementation,
    pool: jax.Array,
    frames: jax.Array,
    chunks: jax.Array,
) -> jax.Array:
    """Overwrite chunks; see `pallas_kernels.api.scatter_chunks`."""
    chunk_dim = chunks.shape[-1]
    (pool,), _ = update_chunks(
        implementation,
        (pool,),
        frames.reshape(-1),
        (chunks.astype(pool.dtype).reshape(-1, chunk_dim),),
        _overwrite,
        (chunk_dim,),
    )
    return pool


def _scatter_forward(
    implementation: Implementation,
    pool: jax.Array,
    frames: jax.Array,
    chunks: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    new: Any = scatter_chunks(implementation, pool, frames, chunks)
    return new, (frames, chunks)


def _scatter_backward(
    implementation: Implementation,
    residuals: tuple[jax.Array, jax.Array],
    cotangents: jax.Array,
) -> tuple[jax.Array, None, jax.Array]:
    frames, chunks = residuals

    def scatter(pool: jax.Array, chunks: jax.Array) -> jax.Array:
        return reference.scatter_chunks(pool, frames, chunks)

    # Linear, so that it does not matter what was in the pool.
    _, transpose = jax.vjp(scatter, jnp.zeros_like(cotangents), chunks)
    of_pool, of_chunks = transpose(cotangents)
    return of_pool, None, of_chunks


scatter_chunks.defvjp(_scatter_forward, _scatter_backward)


def _overwrite(windows: Arrays, operands: Arrays) -> tuple[Arrays, jax.Array]:
    del windows
    return operands, jnp.ones((operands[0].shape[0], 1), bool)


def update_chunks(
    implementation: Implementation,
    arrays: Arrays,
    frames: jax.Array,
    operands: Arrays,
    update: Update,
    widths: tuple[int, ...],
) -> tuple[Arrays, jax.Array]:
    """Step chunks; see `pallas_kernels.api.update_chunks`."""
    if implementation == "triton":
        from .triton import update_chunks as step
    elif implementation == "sparsecore":
        from .sparsecore import update_chunks as step
    else:
        from .mosaic_tpu import update_chunks as step
    pairs = zip(arrays, widths, strict=True)
    end = min(num_windows(array, width) for array, width in pairs)
    frames = jnp.where((frames > 0) & (frames < end), frames, NULL_FRAME)
    return step(arrays, frames, operands, update, widths)


def probe_and_load(
    implementation: Implementation,
    words: Arrays,
    queries: Arrays,
    buckets: jax.Array,
    num_ways: int,
    columns: Arrays,
) -> tuple[jax.Array, Arrays]:
    """Find keys; see `pallas_kernels.api.probe_and_load`."""
    if implementation == "triton":
        from .triton import probe_and_load as probe
    else:
        from .mosaic_tpu import probe_and_load as probe
    return probe(words, queries, buckets, num_ways, columns)
