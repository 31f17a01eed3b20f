"""`adaembed`: whole rows compete over all tables, by count times gradient norm.

References:
  Lai et al., "AdaEmbed: adaptive embedding for large-scale recommendation models", OSDI
  2023. A configuration of the store: one chunk per vector, importance decayed by 0.8 in
  1,024 steps, and rows move only if at least 5 % of them would. Deviations: the store
  tracks as many ids as it has rows, and a new id takes the row of the least important
  one of its bucket at once, so rows change owner at admission more than in prune steps;
  importances are not divided by the 95th percentile of their table, as in one of two
  implementations by the authors of CAFE; all rows are ranked and not a sample; a row
  that is handed out begins with small values and not zeros, as those of the other
  methods do.
"""

import math

from ..scorers import fiited as count_times_norm
from .base import Method, Request
from .fiited import BARE, store_method

__all__ = ["adaembed"]

_HALF_LIFE = 1024 * math.log(0.5) / math.log(0.8)


def adaembed(request: Request) -> Method:
    """Build the store.

    Raises:
      ValueError: on a budget that the store refuses.
    """
    return store_method(
        request,
        **BARE,
        chunk_dim=request.embedding_dim,
        scorer=count_times_norm(),
        half_life=_HALF_LIFE,
        hysteresis=0.05,
    )
