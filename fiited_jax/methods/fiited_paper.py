"""`fiited_paper`: the store by the rules of the paper, as far as it tells them.

References:
  Luo et al., arXiv:2401.04408: every chunk is ranked by itself, by the number of its
  accesses times the norm of its gradient, and a pruned one reads zeros. Deviations: the
  number of chunks is not published, here four; so are decay and interval, which are
  those of the request.
"""

from ..scorers import fiited as count_times_norm
from .base import Method, Request
from .fiited import BARE, store_method

__all__ = ["fiited_paper"]

_NUM_CHUNKS = 4


def fiited_paper(request: Request) -> Method:
    """Build the store.

    Raises:
      ValueError: on a budget or sizes that the store refuses.
    """
    width = request.embedding_dim
    return store_method(
        request,
        **BARE,
        chunk_dim=width // _NUM_CHUNKS if width % _NUM_CHUNKS == 0 else width,
        scorer=count_times_norm(),
    )
