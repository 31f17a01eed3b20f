"""`fiited`: the store of this package, chunks pruned while training."""

from typing import Any

from flax import nnx

from ..config import EmbeddingConfig
from ..keys import keys_from_int64
from ..nn.nnx import PagedEmbed
from .base import Embed, Method, Request, required_budget

__all__ = ["BARE", "WAITING", "fiited", "store_method"]

# Rules of `store_method` without what this package adds to them.
BARE = {
    "ranking": "chunks",
    "length_alpha": 0.0,
    "fallback": "zero",
    "frames_per_entry": None,
    "filter_share": 0.0,
    "value_dtype": "float32",
}
# As many ids wait for a row as have one, and only prune steps give any.
WAITING = BARE | {"frames_per_entry": 0.5, "initial_chunks": 0, "headroom": 0.0}


def fiited(request: Request) -> Method:
    """Build the store.

    Raises:
      ValueError: on a budget or sizes that the store refuses.
    """
    return store_method(request)


def store_method(request: Request, **rules: Any) -> Method:
    """Build a store of other rules.

    Args:
      request: what to build.
      **rules: arguments of `EmbeddingConfig.from_budget` that go before it.

    Returns:
      The method.

    Raises:
      ValueError: as `fiited`.
    """
    fields: dict[str, Any] = {
        "embedding_dim": request.embedding_dim,
        "chunk_dim": request.chunk_dim,
        "optimizer": request.optimizer,
        "num_tables": request.num_tables,
        "num_ids": request.vocabulary.num_pairs,
        # Wider ids than those of the training split are unknown: they read zeros.
        "id_bits": request.vocabulary.id_bits,
        "initial_scale": request.initial_scale,
        "scorer": request.scorer,
        "ranking": request.ranking,
        "length_alpha": request.length_alpha,
        "half_life": request.half_life,
        "frames_per_entry": request.frames_per_entry,
        "filter_share": request.filter_share,
        "fallback": request.fallback,
        "shared_share": request.shared_share,
        "value_dtype": request.value_dtype,
    }
    config = EmbeddingConfig.from_budget(required_budget(request), **(fields | rules))

    def make_embed(rngs: nnx.Rngs) -> Embed:
        return PagedEmbed(config, request.optimizer, rngs=rngs)

    return Method(request.embedding_dim, make_embed, keys_from_int64, prunes=True)
