"""Places: which chunk is read, from which of two pools, in one number each."""

import jax
import jax.numpy as jnp

from .reference import NULL_FRAME, Arrays, Fallback

__all__ = ["frames_per_pool", "merge_frames"]


def merge_frames(
    pool: jax.Array, frames: jax.Array, fallback: Fallback
) -> tuple[Arrays, jax.Array]:
    """Merge the frames of a pool with those that stand in for null frames.

    Args:
      pool: the pool.
      frames: `i32[...]`.
      fallback: as for `pallas_kernels.api.gather_chunks`.

    Returns:
      One pool or two; and `i32[...]` places: frame p of the first for p > 0, frame -p
      of the second for p < 0, nothing but zeros for `NULL_FRAME`.

    >>> merge_frames(
    ...     jnp.zeros(9), jnp.array([0, 7, 0]), (jnp.zeros(9), jnp.array([4, 5, 0])))[1]
    Array([-4,  7,  0], dtype=int32)
    """
    if fallback is None:
        return (pool,), frames
    other, other_frames = fallback
    return (pool, other), jnp.where(frames == NULL_FRAME, -other_frames, frames)


def frames_per_pool(places: jax.Array, num_pools: int) -> Arrays:
    """Split places again: the frames of each pool, `NULL_FRAME` where it is not read.

    >>> frames_per_pool(jnp.array([-4, 7, 0]), 2)
    (Array([0, 7, 0], dtype=int32), Array([4, 0, 0], dtype=int32))
    """
    if num_pools == 1:
        return (places,)
    return jnp.maximum(places, NULL_FRAME), jnp.maximum(-places, NULL_FRAME)
