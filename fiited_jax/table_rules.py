"""Rules per table: how long its vectors may be."""

import jax
import jax.numpy as jnp

from .config import EmbeddingConfig

__all__ = ["allowed_chunks", "zero_beyond"]


def allowed_chunks(tables: jax.Array, config: EmbeddingConfig) -> jax.Array:
    """Return how many chunks vectors of these tables may have.

    Args:
      tables: `i32[...]`; -1, no table, is as table 0.
      config: sizes and rules.

    Returns:
      `i32[...]`, 1 to K.
    """
    if config.table_dims is None:
        return jnp.full_like(tables, config.num_chunks)
    counts = [dim // config.chunk_dim for dim in config.table_dims]
    return jnp.asarray(counts, jnp.int32)[jnp.maximum(tables, 0)]


def zero_beyond(
    vectors: jax.Array, tables: jax.Array, config: EmbeddingConfig
) -> jax.Array:
    """Blank the chunks that vectors of these tables do not have.

    Args:
      vectors: `[N, K, C]`.
      tables: `i32[N]`.
      config: sizes and rules.

    Returns:
      `[N, K, C]`.
    """
    if config.table_dims is None:
        return vectors
    chunks = jnp.arange(config.num_chunks)[None, :]
    is_allowed = chunks < allowed_chunks(tables, config)[:, None]
    return jnp.where(is_allowed[..., None], vectors, 0)
