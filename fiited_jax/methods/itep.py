"""`itep`: rows compete by how often their ids come, with a share for each table.

References:
  In-training embedding pruning of TorchRec (`modules/itep_modules.py`). A configuration
  of the store: one chunk per vector, access counts decayed by 0.98 in 1,001 steps, and
  in prune steps a share of the rows for each table, proportional to the ids it has.
  Deviations: the store tracks as many ids as it has rows, and a new id takes the row of
  the one of its bucket that came least at once, of whatever table, so that a table may
  hold less than its share; all rows are ranked and not every 23rd; counts are not
  sampled over steps; the interval is that of the other methods.
"""

import math

from ..scorers import frequency
from .base import Method, Request
from .fiited import BARE, store_method

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
        **BARE,
        chunk_dim=request.embedding_dim,
        scorer=frequency(),
        half_life=_HALF_LIFE,
        table_floors=tuple(size / sum(sizes) for size in sizes),
    )
