"""`adaembed`: whole rows compete over all tables, by count times gradient norm.

References:
  Lai et al., "AdaEmbed: adaptive embedding for large-scale recommendation models", OSDI
  2023; the decay, of which it tells no numbers, by the implementation that comes with
  CAFE (Zhang et al., SIGMOD 2024). A configuration of the store: one chunk per vector;
  importance is the number of accesses times the norm of the gradient, decayed by 0.8 in
  1,024 steps, and compared over the 95th percentile of its table; rows move only in
  prune steps, and only if at least 5 % of them would. Deviations: the store tracks
  twice as many ids as it has rows where there are so many, not all there are, as they
  count in the budget; a new id takes the place of the
  least important one of its bucket, by importances as they are, and if that had a row,
  the row is idle until the next prune step; all rows are ranked and not a sample; the
  interval is that of the other methods; a row that is handed out begins with small
  values and not zeros, as those of the other methods do.
"""

import math

from ..scorers import fiited as count_times_norm
from .base import Method, Request
from .fiited import WAITING, store_method

__all__ = ["adaembed"]

_HALF_LIFE = 1024 * math.log(0.5) / math.log(0.8)


def adaembed(request: Request) -> Method:
    """Build the store.

    Raises:
      ValueError: on a budget that the store refuses.
    """
    return store_method(
        request,
        **WAITING,
        chunk_dim=request.embedding_dim,
        scorer=count_times_norm(),
        utility_scale="p95",
        half_life=_HALF_LIFE,
        hysteresis=0.05,
    )
