"""`full`: one row for every pair of the training split. The quality to reach."""

from flax import nnx

from .base import Embed, Method, Request
from .table_embed import TableEmbed

__all__ = ["full", "full_table"]


def full(request: Request) -> Method:
    """Build the full table; it has no budget.

    Ids that the training split does not contain read zeros.
    """
    return full_table(request, request.embedding_dim)


def full_table(request: Request, embedding_dim: int) -> Method:
    """Build a full table of any width."""
    vocabulary = request.vocabulary

    def make_embed(rngs: nnx.Rngs) -> Embed:
        return TableEmbed(
            vocabulary.num_pairs,
            embedding_dim,
            request.optimizer,
            initial_scale=request.initial_scale,
            hashed=False,
            rngs=rngs,
        )

    return Method(embedding_dim, make_embed, vocabulary.rows, prunes=False)
