"""Pooling: one vector per bag of ids."""

from typing import Literal

import jax
import jax.numpy as jnp

__all__ = ["pool"]


def pool(
    vectors: jax.Array,
    mask: jax.Array,
    *,
    combiner: Literal["sum", "mean"] = "sum",
    weights: jax.Array | None = None,
) -> jax.Array:
    """Combine the vectors of each bag.

    Args:
      vectors: `f32[..., L, D]`, L ids per bag.
      mask: `bool[..., L]`, true where there is an id; `Handle.mask`.
      combiner: `"sum"`, or `"mean"` over the ids (weighted: over the weights).
      weights: `f32[..., L]`, one per id.

    Returns:
      `f32[..., D]`; an empty bag is zeros.

    Raises:
      ValueError: on shapes that do not fit, or another combiner.

    >>> pool(jnp.ones((1, 3, 2)), jnp.array([[True, True, False]]), combiner="mean")
    Array([[1., 1.]], dtype=float32)
    """
    if combiner not in ("sum", "mean"):
        raise ValueError(f"combiner must be 'sum' or 'mean', got {combiner!r}")
    for name, array in (("mask", mask), ("weights", weights)):
        if array is not None and array.shape != vectors.shape[:-1]:
            raise ValueError(
                f"{name} must have shape {vectors.shape[:-1]}, got {array.shape}"
            )
    scale = mask.astype(vectors.dtype)
    if weights is not None:
        scale = jnp.where(mask, weights.astype(vectors.dtype), 0)
    total = jnp.sum(vectors * scale[..., None], axis=-2)
    if combiner == "sum":
        return total
    weight = jnp.sum(scale, axis=-1, keepdims=True)
    return jnp.where(weight == 0, 0, total / jnp.where(weight == 0, 1, weight))
