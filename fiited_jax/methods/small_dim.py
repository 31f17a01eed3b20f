"""`small_dim`: the full table, as narrow as the budget demands.

The humblest baseline, and on many data sets the hardest.
"""

from ..checks import BudgetError
from .base import Method, Request, required_budget
from .full import full_table
from .table_embed import table_bytes

__all__ = ["small_dim"]


def small_dim(request: Request) -> Method:
    """Build the widest full table that fits.

    Raises:
      ValueError: if not even width 1 fits.
    """
    budget, num_rows = required_budget(request), request.vocabulary.num_pairs

    def size(width: int) -> int:
        return table_bytes(num_rows, width, request.optimizer)

    if size(1) > budget:
        raise BudgetError(
            f"budget is too small for method small_dim: {num_rows} rows of one value "
            f"take {size(1)} bytes, got {budget}"
        )
    widths = range(1, request.embedding_dim + 1)
    return full_table(request, max(w for w in widths if size(w) <= budget))
