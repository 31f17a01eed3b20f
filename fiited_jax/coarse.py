"""Coarse values: what chunks without a frame read with `fallback="coarse"`.

Most ids of a click log come a few times: what they teach fits into a few bits of each
value, and a frame of exact values is too dear for them. So an entry holds the first
`coarse_dim` values of its vector itself, in a byte each: 4 bits of value, in steps of
`coarse_step`, and 4 bits of optimizer state, a power of two. They are trained where
there is no frame, and a chunk that gets a frame starts from them. One that loses its
frame reads them as they were when it got it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import gather_windows, scatter_windows

from .config import EmbeddingConfig
from .extent import Runs, present_chunks
from .sparse_optim import SparseOptimizer
from .state import NO_ENTRY, PageTable
from .utility import rounding_salt

__all__ = [
    "coarse_of_chunks",
    "coarse_start",
    "encode_coarse",
    "read_coarse",
    "step_coarse",
    "suits_coarse",
]

_MOST_STEPS = 7  # a coarse value is at most so many steps from 0
_MOST_DOUBLINGS = 15  # what optimizer state has grown by, at most
_PURPOSE = 4  # of the rounding, apart from those of utilities and pools


def read_coarse(
    pages: PageTable, entries: jax.Array, runs: Runs, config: EmbeddingConfig
) -> jax.Array:
    """Read the coarse values that stand in for absent chunks.

    Args:
      pages: the page table, with coarse values.
      entries: `i32[...]`, `NO_ENTRY` for none.
      runs: `[...]` of the entries.
      config: sizes and rules.

    Returns:
      `f32[..., K, C]`, zeros for chunks that have a frame or no coarse values, and
      where there is no entry.
    """
    assert pages.coarse is not None
    values = _decode(gather_windows(pages.coarse, entries, config.coarse_dim), config)
    pad = [(0, 0)] * entries.ndim + [(0, config.embedding_dim - config.coarse_dim)]
    chunks = jnp.pad(values, pad).reshape(
        *entries.shape, config.num_chunks, config.chunk_dim
    )
    is_absent = ~present_chunks(runs.extent, config)
    is_read = is_absent & (entries != NO_ENTRY)[..., None]
    return jnp.where(is_read[..., None], chunks, 0.0)


def coarse_of_chunks(
    coarse: jax.Array,
    entries: jax.Array,
    chunks: jax.Array,
    optimizer: SparseOptimizer,
    config: EmbeddingConfig,
) -> tuple[jax.Array, jax.Array, Any]:
    """Read the coarse values of single chunks, and their optimizer state.

    Args:
      coarse: `u8[M * Q]`.
      entries: `i32[n]` in range.
      chunks: `i32[n]` chunk numbers.
      optimizer: the store's optimizer.
      config: sizes and rules.

    Returns:
      `bool[n, 1]` which chunks have coarse values; for them `f32[n, C]` the values, and
      slots with leading axis n.
    """
    num_coarse = config.coarse_dim // config.chunk_dim
    at = entries * num_coarse + jnp.minimum(chunks, num_coarse - 1)
    codes = gather_windows(coarse, at, config.chunk_dim)
    slots = _slots(_state(codes, optimizer, config), optimizer)
    return (chunks < num_coarse)[:, None], _decode(codes, config), slots


def step_coarse(
    coarse: jax.Array,
    entries: jax.Array,
    grads: jax.Array,
    steps: jax.Array,
    tables: jax.Array,
    optimizer: SparseOptimizer,
    config: EmbeddingConfig,
    *,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Step coarse values along their gradients, rounded stochastically.

    What is rounded is the change, so that a gradient of 0 changes nothing.

    Args:
      coarse: `u8[M * Q]`.
      entries: `i32[n]` distinct, `NO_ENTRY` for none.
      grads: `f32[n, K, C]`, summed over duplicates.
      steps: `bool[n, K]` which chunks are stepped.
      tables: `i32[n]`.
      optimizer: the store's optimizer.
      config: sizes and rules.
      step: `i32[]` updates before this one.

    Returns:
      The coarse values, updated; and `bool[n, K]`, false for chunks left as they were
      because what they would become is not finite.
    """
    dim, chunk_dim = config.coarse_dim, config.chunk_dim
    num_coarse = dim // chunk_dim
    rows = entries.size * num_coarse, chunk_dim
    old = gather_windows(coarse, entries, dim)
    values, state = _decode(old, config), _state(old, optimizer, config)
    new_values, new_slots = optimizer.update(
        grads[:, :num_coarse].reshape(rows),
        _slots(state.reshape(rows), optimizer),
        values.reshape(rows),
        learning_rate=optimizer.learning_rate_at(step),
        scale=optimizer.scale_of(jnp.repeat(tables, num_coarse)),
    )
    (new_state,) = jax.tree.leaves(new_slots)
    new_values, new_state = new_values.reshape(old.shape), new_state.reshape(old.shape)
    is_finite = jnp.isfinite(new_values) & jnp.isfinite(new_state)
    per_chunk = entries.size, num_coarse, chunk_dim
    is_sound = jnp.all(is_finite.reshape(per_chunk), axis=-1)

    places = entries[:, None] * dim + lax.broadcasted_iota(jnp.int32, old.shape, 1)
    salt = rounding_salt(step, places, _PURPOSE)
    change = (new_values - values) / config.coarse_step
    growth = jnp.log2(jnp.maximum(new_state / state, 2.0**-_MOST_DOUBLINGS))
    new = _encode(
        _signed(old) + jnp.floor(change + _unit(salt >> 16)),
        _doublings(old) + jnp.floor(growth + _unit(salt & 0xFFFF)),
    )
    writes = (steps[:, :num_coarse] & is_sound)[..., None]
    new = jnp.where(jnp.broadcast_to(writes, per_chunk).reshape(old.shape), new, old)
    rest = jnp.ones((entries.size, config.num_chunks - num_coarse), bool)
    return (
        scatter_windows(coarse, entries, new),
        jnp.concatenate([is_sound, rest], axis=1),
    )


def encode_coarse(values: jax.Array, config: EmbeddingConfig) -> jax.Array:
    """Round values to the nearest coarse ones, with fresh optimizer state.

    Args:
      values: `f32[n, D]`.
      config: sizes and rules.

    Returns:
      `u8[n, Q]`; what is out of range becomes the largest there is.
    """
    steps = jnp.round(values[:, : config.coarse_dim] / config.coarse_step)
    return _encode(steps, jnp.zeros_like(steps))


def suits_coarse(optimizer: SparseOptimizer, chunk_dim: int) -> bool:
    """Tell whether 4 bits can hold an optimizer's state of a value."""
    try:
        coarse_start(optimizer, chunk_dim)
    except ValueError:
        return False
    return True


@functools.lru_cache
def coarse_start(optimizer: SparseOptimizer, chunk_dim: int) -> float:
    """Return what an optimizer's state of a value starts from.

    Args:
      optimizer: the store's optimizer.
      chunk_dim: C.

    Returns:
      A positive number; the state is this times a power of two.

    Raises:
      ValueError: if that state is not one number per value, positive from its start on
        and whatever the gradients: 4 bits could not hold it.
    """
    specs = optimizer.slot_specs(chunk_dim)
    if [(spec.shape, spec.dtype) for spec in specs] == [((chunk_dim,), "float32")]:
        with jax.ensure_compile_time_eval():
            values = jnp.zeros((3, chunk_dim))
            slots = optimizer.init(values)
            grads = jnp.array([[-1.0], [0.0], [1.0]]) * jnp.ones((1, chunk_dim))
            _, stepped = optimizer.update(
                grads,
                slots,
                values,
                learning_rate=optimizer.learning_rate_at(0),
                scale=jnp.ones(3),
            )
            (start,), (then,) = jax.tree.leaves(slots), jax.tree.leaves(stepped)
            first, lowest = float(start[0, 0]), float(jnp.min(then))
        if lowest > 0:
            return first
    raise ValueError(
        "optimizer must keep one positive number per value with fallback='coarse', as "
        "optax.adagrad with an initial_accumulator_value above 0 does; got one with "
        f"{specs}"
    )


def _state(
    codes: jax.Array, optimizer: SparseOptimizer, config: EmbeddingConfig
) -> jax.Array:
    """The optimizer state of codes `u8[...]`, `f32[...]`."""
    return coarse_start(optimizer, config.chunk_dim) * jnp.exp2(_doublings(codes))


def _slots(state: jax.Array, optimizer: SparseOptimizer) -> Any:
    """Slots that hold the one number per value that there is, `f32[n, C]`."""
    return jax.tree.unflatten(
        jax.tree.structure(jax.eval_shape(optimizer.init, state)), [state]
    )


def _doublings(codes: jax.Array) -> jax.Array:
    return (codes >> 4).astype(jnp.float32)


def _decode(codes: jax.Array, config: EmbeddingConfig) -> jax.Array:
    return _signed(codes) * jnp.float32(config.coarse_step)


def _signed(codes: jax.Array) -> jax.Array:
    """The steps that codes `u8[...]` are from 0, `f32[...]`."""
    return (((codes.astype(jnp.int32) & 15) ^ 8) - 8).astype(jnp.float32)


def _encode(steps: jax.Array, doublings: jax.Array) -> jax.Array:
    low = jnp.clip(steps, -_MOST_STEPS, _MOST_STEPS).astype(jnp.int32) & 15
    high = jnp.clip(doublings, 0, _MOST_DOUBLINGS).astype(jnp.int32)
    return (low | (high << 4)).astype(jnp.uint8)


def _unit(bits: jax.Array) -> jax.Array:
    """Numbers in [0, 1) of 16 bits."""
    return bits.astype(jnp.float32) * 2.0**-16
