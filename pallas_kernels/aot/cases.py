"""What is compiled: every operation by every implementation, at a named shape."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from .. import api

__all__ = ["CASES", "Case"]

_NUM_FRAMES = 1 << 20
_CHUNK_DIM = 16
_NUM_LOOKUPS = 1 << 12
_NUM_CHUNKS = 4
_NUM_WAYS = 32
_WITH_SPARSECORES = ("v5p", "v6e")


class Case(NamedTuple):
    """A function and what it is compiled for.

    Attributes:
      function: to be jitted.
      arguments: shapes and dtypes, a tuple of pytrees of `jax.ShapeDtypeStruct`.
      donate: numbers of the arguments that are updated in place.
      kernel: name of the kernel that must be in the compiled code, `None` for none.
      platform: the only one it is meant for, `None` for all.
      targets: the only chips of it that it is meant for, `None` for all.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    kernel: str | None = None
    platform: Literal["gpu", "tpu"] | None = None
    targets: tuple[str, ...] | None = None


def _of(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


_POOL = _of(_NUM_FRAMES * _CHUNK_DIM // 128, 128, dtype=jnp.float32)
_FRAMES = _of(_NUM_LOOKUPS)
_CHUNKS = _of(_NUM_LOOKUPS, _CHUNK_DIM, dtype=jnp.float32)
# Keys of 32 bits of up to 255 tables, as a store has them.
_PROBED = (
    _of(_NUM_FRAMES, dtype=jnp.uint32),
    _of(_NUM_FRAMES, dtype=jnp.uint8),
    _of(_NUM_LOOKUPS, dtype=jnp.uint32),
    _of(_NUM_LOOKUPS, dtype=jnp.uint8),
    _FRAMES,
)


# What else an entry holds: its first frame, and how many.
_LOADED = (*_PROBED, _of(_NUM_FRAMES), _of(_NUM_FRAMES, dtype=jnp.uint8))


def _gather_chunks(
    implementation: api.Implementation, chunk_dim: int = _CHUNK_DIM
) -> Callable[..., jax.Array]:
    return functools.partial(
        api.gather_chunks, chunk_dim=chunk_dim, implementation=implementation
    )


def _gather_runs(
    implementation: api.Implementation, chunk_dim: int = _CHUNK_DIM
) -> Callable[..., jax.Array]:
    def gather_runs(
        pool: jax.Array,
        starts: jax.Array,
        lengths: jax.Array,
        others: jax.Array,
        frames: jax.Array,
    ) -> jax.Array:
        return api.gather_runs(
            pool,
            starts,
            lengths,
            chunk_dim,
            _NUM_CHUNKS,
            fallback=(others, frames),
            implementation=implementation,
        )

    return gather_runs


def _scatter_chunks(implementation: api.Implementation) -> Callable[..., jax.Array]:
    return functools.partial(api.scatter_chunks, implementation=implementation)


def _probe(implementation: api.Implementation) -> Callable[..., Any]:
    def probe(
        low: jax.Array,
        owner: jax.Array,
        low_query: jax.Array,
        owner_query: jax.Array,
        buckets: jax.Array,
        *columns: jax.Array,
    ) -> Any:
        key = (low, owner), (low_query, owner_query), buckets, _NUM_WAYS
        if not columns:
            return api.probe_page_table(*key, implementation=implementation)
        return api.probe_and_load(*key, columns, implementation=implementation)

    return probe


def _adagrad(
    windows: tuple[jax.Array, ...], operands: tuple[jax.Array, ...]
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    (values, sums), (grads, rate) = windows, operands
    sums += grads * grads
    values -= rate * grads / (jnp.sqrt(sums) + 1e-10)
    is_sound = jnp.isfinite(values) & jnp.isfinite(sums)
    # Not `jnp.all`, which Triton does not lower.
    accepts = jnp.min(jnp.where(is_sound, 1.0, 0.0), axis=-1, keepdims=True) > 0
    return (values, sums), accepts


def _update(implementation: api.Implementation) -> Callable[..., Any]:
    def update(
        values: jax.Array,
        sums: jax.Array,
        frames: jax.Array,
        grads: jax.Array,
        rate: jax.Array,
    ) -> Any:
        return api.update_chunks(
            (values, sums),
            frames,
            (grads, rate),
            _adagrad,
            (_CHUNK_DIM, _CHUNK_DIM),
            implementation=implementation,
        )

    return update


_RUNS = (
    _POOL,
    _of(_NUM_LOOKUPS // _NUM_CHUNKS),
    _of(_NUM_LOOKUPS // _NUM_CHUNKS),
    _of(1 << 12, 128, dtype=jnp.float32),
    _of(_NUM_LOOKUPS // _NUM_CHUNKS, _NUM_CHUNKS),
)
_WRITTEN = (_POOL, _FRAMES, _CHUNKS)
_UPDATED = (_POOL, _POOL, _FRAMES, _CHUNKS, _of(dtype=jnp.float32))

CASES = {
    "gather_chunks/xla": Case(_gather_chunks("xla"), (_POOL, _FRAMES)),
    "gather_chunks/mosaic_tpu": Case(
        _gather_chunks("mosaic_tpu"), (_POOL, _FRAMES), (), "gather_chunks", "tpu"
    ),
    "gather_chunks/sparsecore": Case(
        _gather_chunks("sparsecore"),
        (_POOL, _FRAMES),
        (),
        "gather_chunks",
        "tpu",
        _WITH_SPARSECORES,
    ),
    "gather_chunks/mosaic_gpu": Case(
        _gather_chunks("mosaic_gpu", 2 * _CHUNK_DIM),
        (_POOL, _FRAMES),
        (),
        "gather_chunks",
        "gpu",
    ),
    "gather_chunks/triton": Case(
        _gather_chunks("triton"), (_POOL, _FRAMES), (), "gather_chunks", "gpu"
    ),
    "gather_runs/xla": Case(_gather_runs("xla"), _RUNS),
    "gather_runs/mosaic_tpu": Case(
        _gather_runs("mosaic_tpu"), _RUNS, (), "gather_chunks", "tpu"
    ),
    "gather_runs/sparsecore": Case(
        _gather_runs("sparsecore"),
        _RUNS,
        (),
        "gather_chunks",
        "tpu",
        _WITH_SPARSECORES,
    ),
    "gather_runs/mosaic_gpu": Case(
        _gather_runs("mosaic_gpu", 2 * _CHUNK_DIM), _RUNS, (), "gather_chunks", "gpu"
    ),
    "gather_runs/triton": Case(
        _gather_runs("triton"), _RUNS, (), "gather_chunks", "gpu"
    ),
    "scatter_chunks/xla": Case(_scatter_chunks("xla"), _WRITTEN, (0,)),
    "scatter_chunks/mosaic_tpu": Case(
        _scatter_chunks("mosaic_tpu"), _WRITTEN, (0,), "update_chunks", "tpu"
    ),
    "scatter_chunks/sparsecore": Case(
        _scatter_chunks("sparsecore"),
        _WRITTEN,
        (0,),
        "update_chunks",
        "tpu",
        _WITH_SPARSECORES,
    ),
    "scatter_chunks/triton": Case(
        _scatter_chunks("triton"), _WRITTEN, (0,), "update_chunks", "gpu"
    ),
    "update_chunks/xla": Case(_update("xla"), _UPDATED, donate=(0, 1)),
    "update_chunks/mosaic_tpu": Case(
        _update("mosaic_tpu"), _UPDATED, (0, 1), "update_chunks", "tpu"
    ),
    "update_chunks/sparsecore": Case(
        _update("sparsecore"),
        _UPDATED,
        (0, 1),
        "update_chunks",
        "tpu",
        _WITH_SPARSECORES,
    ),
    "update_chunks/triton": Case(
        _update("triton"), _UPDATED, (0, 1), "update_chunks", "gpu"
    ),
    "probe_page_table/xla": Case(_probe("xla"), _PROBED),
    "probe_page_table/mosaic_tpu": Case(
        _probe("mosaic_tpu"), _PROBED, (), "probe_page_table", "tpu"
    ),
    "probe_page_table/triton": Case(
        _probe("triton"), _PROBED, (), "probe_page_table", "gpu"
    ),
    "probe_and_load/xla": Case(_probe("xla"), _LOADED),
    "probe_and_load/mosaic_tpu": Case(
        _probe("mosaic_tpu"), _LOADED, (), "probe_page_table", "tpu"
    ),
    "probe_and_load/triton": Case(
        _probe("triton"), _LOADED, (), "probe_page_table", "gpu"
    ),
}
"""The operations, named `operation/implementation`.

Pools of 2^20 frames of 16 float32, page tables of 2^20 entries in buckets of 32, and
2^12 lookups of a chunk or key; runs are read with a fallback.
"""
