"""`hash`: ids share the rows that fit, by hash modulo rows.

References:
  Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009.
  Deviation: one row set for all tables, the table number mixed into the hash, so that
  its share per table floats as it does for the methods it is compared with.
"""

from flax import nnx

from ..checks import BudgetError
from ..keys import keys_from_int64
from .base import Embed, Method, Request, required_budget
from .table_embed import TableEmbed, rows_within, table_bytes

__all__ = ["hash_trick"]


def hash_trick(request: Request) -> Method:
    """Build the hashed table.

    Raises:
      ValueError: if not even one row fits.
    """
    budget, width = required_budget(request), request.embedding_dim
    num_rows = rows_within(budget, width, request.optimizer)
    if num_rows < 1:
        raise BudgetError(
            f"budget is too small for method hash: one row of {width} values takes "
            f"{table_bytes(1, width, request.optimizer)} bytes, got {budget}"
        )

    def make_embed(rngs: nnx.Rngs) -> Embed:
        return TableEmbed(
            num_rows,
            width,
            request.optimizer,
            initial_scale=request.initial_scale,
            hashed=True,
            rngs=rngs,
        )

    return Method(width, make_embed, keys_from_int64, prunes=False)
