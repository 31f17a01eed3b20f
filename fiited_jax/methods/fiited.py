"""`fiited`: the store of this package, chunks pruned while training."""

from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from ..checks import BudgetError
from ..coarse import suits_coarse
from ..config import EmbeddingConfig
from ..nn.nnx import PagedEmbed
from .base import Embed, Method, Request, required_budget
from .id_words import id_words

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

# Ids that come less often than this learn no more than coarse values hold. Chosen
# between Criteo and Avazu, with 10 and 17 lookups per id, and MovieLens-1M with 851.
_RARE_LOOKUPS = 50.0
_FEWEST_COARSE = 4  # with fewer, ids that are worth most by exact values are better


def fiited(request: Request) -> Method:
    """Build the store.

    With `page_table="rows"` the ids of the training split are numbered, as they are for
    the methods with a row per id, and all others of a table are one unknown id.
    `"auto"` does so where that leaves a frame or a few coarse values for every id,
    unless the request rules how many ids are tracked. `fallback="auto"` is `"coarse"`
    for such numbered ids if they come rarely, and `"zero"` for all others.

    Raises:
      ValueError: on a budget or sizes that the store refuses.
    """
    if request.page_table == "hashed":
        return store_method(request)
    if request.page_table == "rows":
        return _numbered(request, _rows_config(request))
    if request.frames_per_entry is None and not request.filter_share:
        try:
            config = _rows_config(request)
        except ValueError:  # too small a budget, or more rows than are numbered
            return store_method(request)
        has_frames = config.target_frames >= request.vocabulary.num_pairs
        if has_frames or config.coarse_dim >= _FEWEST_COARSE:
            return _numbered(request, config)
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
    config = _config(request, **rules)
    return Method(
        request.embedding_dim,
        _maker(request, config),
        id_words(request.vocabulary).encode,
        prunes=True,
    )


def _numbered(request: Request, config: EmbeddingConfig) -> Method:
    """Build a store with an entry for every id of the training split."""
    sizes = np.array(config.table_sizes)
    first = np.cumsum(sizes) - sizes

    def encode(ids: np.ndarray) -> np.ndarray:
        rows = request.vocabulary.rows(ids)
        unknown = np.where(ids < 0, -1, sizes)  # padding, and behind the last row
        return np.where(rows < 0, unknown, rows - first).astype(np.int32)

    return Method(request.embedding_dim, _maker(request, config), encode, prunes=True)


def _maker(request: Request, config: EmbeddingConfig) -> Callable[[nnx.Rngs], Embed]:
    def make_embed(rngs: nnx.Rngs) -> Embed:
        return PagedEmbed(config, request.optimizer, rngs=rngs)

    return make_embed


def _rows_config(request: Request) -> EmbeddingConfig:
    sizes = tuple(len(ids) for ids in request.vocabulary.tables)
    rules: dict[str, Any] = {"num_ids": None, "table_sizes": sizes}
    if request.fallback == "auto" and _are_coarse(request):
        try:
            return _config(request, **rules, fallback="coarse")
        except BudgetError:
            pass
    return _config(request, **rules)


def _are_coarse(request: Request) -> bool:
    """Whether coarse values suit the ids of a request, and its budget leaves some."""
    lookups = request.lookups_per_id
    return (
        lookups is not None
        and lookups < _RARE_LOOKUPS
        and suits_coarse(request.optimizer, request.chunk_dim)
        and _coarse_dim(request) >= _FEWEST_COARSE
    )


def _coarse_dim(request: Request) -> int:
    """How many coarse values an id has: half of its bytes, at most half of a vector."""
    num_bytes = required_budget(request) / request.vocabulary.num_pairs
    most = min(num_bytes, request.embedding_dim) / 2
    return max(int(most / request.chunk_dim), 1) * request.chunk_dim


def _config(request: Request, **rules: Any) -> EmbeddingConfig:
    fields: dict[str, Any] = {
        "embedding_dim": request.embedding_dim,
        "chunk_dim": request.chunk_dim,
        "optimizer": request.optimizer,
        "num_tables": request.num_tables,
        "num_ids": request.vocabulary.num_pairs,
        # Wider ids than those of the training split are unknown: they read zeros.
        "id_bits": id_words(request.vocabulary).bits,
        "initial_scale": request.initial_scale,
        "scorer": request.scorer,
        "ranking": request.ranking,
        "length_alpha": request.length_alpha,
        "half_life": request.half_life,
        "frames_per_entry": request.frames_per_entry,
        "filter_share": request.filter_share,
        "fallback": "zero" if request.fallback == "auto" else request.fallback,
        "shared_share": request.shared_share,
        "value_dtype": request.value_dtype,
    }
    budget = required_budget(request)
    if (fields | rules)["fallback"] == "coarse":
        fields["coarse_dim"] = _coarse_dim(request)
        fields["coarse_step"] = request.coarse_step
    return EmbeddingConfig.from_budget(budget, **(fields | rules))
