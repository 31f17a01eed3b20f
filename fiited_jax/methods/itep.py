"""`itep`: rows go to the ids that come most often, a fixed number in each table.

References:
  In-training embedding pruning of TorchRec (`modules/itep_modules.py`). A configuration
  of the store: one chunk per vector, access counts decayed by 0.98 in 1,001 steps, and
  rows for each table, proportional to the ids it has, that move only in prune steps.
  Deviations: no id has a row before the first prune step, there the first ids have;
  counts decay from the first step, there after a warm-up; a row that is handed out
  begins with small values and not zeros, as those of the other methods do; the store
  tracks twice as many ids as it has rows where there are so many, not all there are, as
  they count in the budget; a new id takes the place of the one of its bucket that came
  least, of whatever table, and if that had a row, the row is idle until the next prune
  step, which gives it to another table if its own has no id left for it; all rows are
  ranked and not every 23rd; counts are not sampled over steps; the interval of prune
  steps, and with `prune_warmup` its ramp, are those of the other methods.
"""

import math

from ..scorers import frequency
from .base import Method, Request
from .fiited import WAITING, store_method

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
        **WAITING,
        chunk_dim=request.embedding_dim,
        scorer=frequency(),
        half_life=_HALF_LIFE,
        table_floors=tuple(size / sum(sizes) for size in sizes),
    )
