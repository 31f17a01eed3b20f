"""DLRM: bottom MLP, embeddings, pairwise interactions, top MLP."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

__all__ = ["DLRM"]


class DLRM(nnx.Module):
    """Click model over the vectors of an embedding module.

    The vectors are an argument of `logits`, so that a training step can differentiate
    with respect to them. Shapes: B batch, F features with ids, D embedding dim.

    Attributes:
      embed: gives `[B, F, D]`, for example `fj.nnx.PagedEmbed`.

    References:
      Naumov et al., "Deep learning recommendation model for personalization and
      recommendation systems", arXiv:1906.00091.
    """

    def __init__(
        self,
        embed: nnx.Module,
        *,
        embedding_dim: int,
        num_features: int,
        num_dense: int,
        bottom_widths: Sequence[int] = (64,),
        top_widths: Sequence[int] = (64, 32),
        rngs: nnx.Rngs,
    ) -> None:
        """Initialize the two MLPs.

        Args:
          embed: the embedding module.
          embedding_dim: D, width of its vectors.
          num_features: F, ids per example.
          num_dense: dense features per example, at least 1.
          bottom_widths: hidden widths of the MLP over dense features.
          top_widths: hidden widths of the MLP over interactions.
          rngs: initializes the weights.
        """
        self.embed = embed
        num_vectors = num_features + 1
        num_pairs = num_vectors * (num_vectors - 1) // 2
        self.bottom = _MLP([num_dense, *bottom_widths, embedding_dim], rngs)
        self.top = _MLP([embedding_dim + num_pairs, *top_widths, 1], rngs)

    def __call__(
        self, dense: jax.Array, ids: jax.Array, *, tables: jax.Array
    ) -> jax.Array:
        """Look ids up and return the logits, `f32[B]`; writes nothing."""
        return self.logits(dense, self.embed(ids, tables=tables))  # pyright: ignore

    def logits(self, dense: jax.Array, vectors: jax.Array) -> jax.Array:
        """Return the log odds of a click.

        Args:
          dense: `f32[B, num_dense]`.
          vectors: `f32[B, F, D]`.

        Returns:
          `f32[B]`.
        """
        # No ReLU at the end: with D = 1 a dead unit would hide all dense features.
        bottom = self.bottom(dense)
        stacked = jnp.concatenate([bottom[:, None, :], vectors], axis=1)
        products = jnp.einsum("bfd,bgd->bfg", stacked, stacked)
        rows, columns = np.tril_indices(stacked.shape[1], -1)
        pairs = products[:, rows, columns]
        return self.top(jnp.concatenate([bottom, pairs], axis=1))[:, 0]


class _MLP(nnx.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: Sequence[int], rngs: nnx.Rngs) -> None:
        self.layers = nnx.List(
            nnx.Linear(before, after, rngs=rngs)
            for before, after in itertools.pairwise(widths)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)
