"""`cafe`: hot ids have rows of their own, all others share rows by hash.

An id is hot while the norms of its gradients, summed in a sketch and decayed, reach a
threshold. Its row starts as a copy of the shared row that it read before.

References:
  Zhang et al., "CAFE: towards compact, adaptive, and fast embedding for large-scale
  recommendation models", SIGMOD 2024, arXiv:2312.03256; one sketch for all tables,
  thresholds, shares and decay as in the authors' configurations for Criteo.
  Deviations: cells hold exact 64-bit ids and table numbers where their ids are numbers
  of a vocabulary; the sketch is charged as it is stored. Ids of a batch that are in the
  sketch are scored before new ones come in. Scores decay at prune steps, by a power
  that makes up for the mass since the last one, and not when the mass is reached. A row
  is copied together with its optimizer state; theirs has none.
"""

import math

from flax import nnx

from ..checks import BudgetError
from ..memory import dense_bytes
from .base import Embed, Method, Request, required_budget
from .cafe_embed import CafeEmbed
from .hot_sketch import sketch_bytes
from .id_words import id_words
from .table_embed import rows_within, table_bytes

__all__ = ["cafe"]

# Of the dense bytes what the budget is; the threshold; of the budget what shared rows
# take.
_SETTINGS = (
    (0.5, 10.0, 0.7),
    (0.2, 10.0, 0.5),
    (0.1, 20.0, 0.5),
    (0.05, 30.0, 0.5),
    (0.02, 50.0, 0.3),
    (0.01, 100.0, 0.3),
    (0.005, 200.0, 0.2),
    (0.002, 500.0, 0.2),
)


def cafe(request: Request) -> Method:
    """Build the sketch and the rows.

    Raises:
      ValueError: if not even one row of each kind fits.
    """
    budget, width = required_budget(request), request.embedding_dim
    vocabulary, optimizer = request.vocabulary, request.optimizer
    words = id_words(vocabulary)

    def sketch_size(num_hot: int) -> int:
        return sketch_bytes(num_hot, request.num_tables, words.bits)

    def num_shared(num_hot: int) -> int:
        return rows_within(budget - sketch_size(num_hot), width, optimizer) - num_hot

    if num_shared(1) < 1:
        least = sketch_size(1) + table_bytes(2, width, optimizer)
        raise BudgetError(
            "budget is too small for method cafe: a sketch of one bucket and two rows "
            f"of {width} values take {least} bytes, got {budget}"
        )
    dense = dense_bytes(vocabulary.num_pairs, width, optimizer)
    _, threshold, shared_share = min(
        _SETTINGS, key=lambda setting: abs(math.log(setting[0] * dense / budget))
    )
    hot_bytes = sketch_size(2) - sketch_size(1) + dense_bytes(1, width, optimizer)
    num_hot = int((1 - shared_share) * budget / hot_bytes)
    num_hot = max(min(num_hot, vocabulary.num_pairs), 1)
    while num_shared(num_hot) < 1:
        num_hot -= 1

    def make_embed(rngs: nnx.Rngs) -> Embed:
        return CafeEmbed(
            num_hot,
            num_shared(num_hot),
            width,
            optimizer,
            num_tables=request.num_tables,
            id_bits=words.bits,
            threshold=threshold,
            initial_scale=request.initial_scale,
            rngs=rngs,
        )

    return Method(width, make_embed, words.encode, prunes=True)
