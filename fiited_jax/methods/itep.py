"""`itep`: the rows of each table compete for its own share, by how often they come.

References:
  In-training embedding pruning of TorchRec (`modules/itep_modules.py`). A configuration
  of the store: one chunk per vector, access counts decayed by 0.98 in 1,001 steps, and
  the budget of a table is proportional to the ids it has. Deviations: all rows are
  ranked and not every 23rd; counts are not sampled over steps; the interval is that of
  the other methods; the store tracks twice as many ids as it has rows and not all, and
  what a table leaves of its share goes to the others.
"""

import math

from ..scorers import frequency
from .base import Method, Request
from .fiited import store_method

__all__ = ["itep"]

_HALF_LIFE = 1001 * math.log(0.5) / math.log(0.98)


def itep(request: Request) -> Method:
    """Build the store.

    Raises:
      ValueError: on a budget that the store refuses.
    """
    sizes = [len(ids) for ids in request.vocabulary.tables]
    return store_method(
        request,
        ranking="chunks",
        chunk_dim=request.embedding_dim,
        scorer=frequency(),
        half_life=_HALF_LIFE,
        table_floors=tuple(size / sum(sizes) for size in sizes),
        fallback="zero",
        frames_per_entry=None,
        filter_share=0.0,
        value_dtype="float32",
    )
