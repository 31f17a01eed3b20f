"""`mixed_dim`: the more popular the ids of a table, the wider its rows.

Narrow rows are projected to D by a matrix of their table, which is trained too.

References:
  Ginart et al., "Mixed dimension embeddings with application to memory-efficient
  recommendation systems", arXiv:1909.11810.
  Deviations: an id of table t is taken to have the popularity 1 / n_t, which is theirs
  for one id per table and example. Dimensions are whole numbers that start at 1, and
  rise in the order in which the power law with a growing base dimension would raise
  them; one that does not fit any more is left where it is, so the last bytes may go to
  tables that the law would raise later. Vectors have the D of the other methods
  instead of the largest dimension. A projection that would save nothing is left out.
  The matrices learn with the optimizer of the rows, one frame of state per line.
"""

from collections.abc import Sequence

from flax import nnx

from ..checks import BudgetError
from ..sparse_optim import SparseOptimizer
from .base import Embed, Method, Request, required_budget
from .mixed_dim_embed import MixedDimEmbed, mixed_dim_bytes

__all__ = ["grow_dims", "mixed_dim"]

TEMPERATURE = 0.3  # alpha: popularity to its power is what widths are proportional to


def mixed_dim(request: Request) -> Method:
    """Build the rows; ids that the training split does not contain read zeros.

    Raises:
      ValueError: if not even rows of one value fit.
    """
    budget, width = required_budget(request), request.embedding_dim
    vocabulary, optimizer = request.vocabulary, request.optimizer
    sizes = [len(ids) for ids in vocabulary.tables]
    dims = grow_dims(sizes, width, budget, optimizer)

    def make_embed(rngs: nnx.Rngs) -> Embed:
        return MixedDimEmbed(
            sizes,
            dims,
            width,
            optimizer,
            initial_scale=request.initial_scale,
            rngs=rngs,
        )

    return Method(width, make_embed, vocabulary.rows, prunes=False)


def grow_dims(
    sizes: Sequence[int], embedding_dim: int, budget: int, optimizer: SparseOptimizer
) -> list[int]:
    """Choose the width of each table.

    Args:
      sizes: rows per table.
      embedding_dim: D, the largest width.
      budget: all-in bytes.
      optimizer: for rows and matrices.

    Returns:
      Widths, as many bytes of them as fit.

    Raises:
      ValueError: if the smallest do not fit.
    """

    def wider(table: int) -> int:
        """Return the next width; D where narrower rows would save nothing."""
        size, dim = sizes[table], dims[table] + 1
        return dim if (size + embedding_dim) * dim < size * embedding_dim else full

    def due(table: int) -> tuple[float, int]:
        """Return the base dimension at which the law widens a table."""
        return wider(table) * sizes[table] ** TEMPERATURE, table

    full = embedding_dim
    dims = [0] * len(sizes)
    dims = [wider(table) for table in range(len(sizes))]
    least = mixed_dim_bytes(sizes, dims, embedding_dim, optimizer)
    if least > budget:
        raise BudgetError(
            f"budget is too small for method mixed_dim: {sum(sizes)} rows of one value "
            f"and their projections take {least} bytes, got {budget}"
        )
    growing = {table for table, dim in enumerate(dims) if dim < full}
    while growing:
        table = min(growing, key=due)
        trial = [*dims]
        trial[table] = wider(table)
        if mixed_dim_bytes(sizes, trial, embedding_dim, optimizer) <= budget:
            dims = trial
        else:
            growing.remove(table)
        growing = {table for table in growing if dims[table] < full}
    return dims
