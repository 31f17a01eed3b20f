"""`qr`: the product of a quotient row and a remainder row, a vector for every pair.

References:
  Shi et al., "Compositional embeddings using complementary partitions for
  memory-efficient recommendation systems", KDD 2020, arXiv:1909.02107.
  Deviations: the pairs of all tables are numbered together and share both row sets, as
  they share the rows of `hash`; tables of few ids are not left uncompressed. Quotient
  rows start at one and remainder rows as the rows of the other methods do, so that the
  products have the distribution of their initial values.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from ..checks import BudgetError
from ..chunk_pool import write_fresh
from ..keys import canonicalize_ids
from ..sparse_optim import SparseOptimizer
from ..state import NULL_FRAME
from ..store import Ids, Tables
from .base import Embed, Method, Request, required_budget
from .table_embed import TableEmbed, TableInfo, rows_within, table_bytes

__all__ = ["QuotientRemainderEmbed", "qr", "split_rows"]


class QuotientRemainderEmbed(TableEmbed):
    """Pair i reads the product of quotient row i // m and remainder row i % m.

    The remainder rows come first, then the quotient rows, in one pool: both step by one
    optimizer. A handle holds the frames of both, `i32[2, ...]`.

    Attributes:
      state: a `TableState` variable that holds the pool.
    """

    def __init__(
        self,
        num_remainders: int,
        num_quotients: int,
        embedding_dim: int,
        optimizer: SparseOptimizer,
        *,
        initial_scale: float,
        rngs: nnx.Rngs,
    ) -> None:
        """Allocate the rows.

        Args:
          num_remainders: m, remainder rows.
          num_quotients: quotient rows.
          embedding_dim: values per row.
          optimizer: for the rows.
          initial_scale: initial values of the products are uniform in
            `[-initial_scale, initial_scale)`.
          rngs: gives the key of the initial values, from its `params` stream.
        """
        super().__init__(
            num_remainders + num_quotients,
            embedding_dim,
            optimizer,
            initial_scale=initial_scale,
            hashed=False,
            rngs=rngs,
        )
        self.num_remainders = num_remainders
        quotients = jnp.arange(num_quotients, dtype=jnp.int32) + num_remainders + 1
        ones = jnp.ones((num_quotients, embedding_dim), jnp.float32)
        self.state.set_value(write_fresh(self._pool, quotients, ones, optimizer))

    def gather(self, handle: jax.Array) -> jax.Array:
        """Read products, `f32[..., D]`."""
        quotients, remainders = super().gather(handle)
        return quotients * remainders

    def apply_gradients(self, handle: jax.Array, vector_grads: jax.Array) -> TableInfo:
        """Step both rows of each product, each along the gradient times the other."""
        others = super().gather(handle)[::-1]
        grads = vector_grads.astype(jnp.float32)[None] * others
        return super().apply_gradients(handle, grads)

    def _frames(self, ids: Ids, tables: Tables) -> jax.Array:
        keys, valid = canonicalize_ids(ids)
        numbers = keys.low.astype(jnp.int32)
        quotients = numbers // self.num_remainders + self.num_remainders + 1
        remainders = numbers % self.num_remainders + 1
        return jnp.where(valid, jnp.stack([quotients, remainders]), NULL_FRAME)


def qr(request: Request) -> Method:
    """Build the rows; ids that the training split does not contain read zeros.

    Raises:
      ValueError: if the rows that fit are too few to give each pair its own product.
    """
    budget, width = required_budget(request), request.embedding_dim
    vocabulary, optimizer = request.vocabulary, request.optimizer
    split = split_rows(rows_within(budget, width, optimizer), vocabulary.num_pairs)
    if split is None:
        root = math.isqrt(vocabulary.num_pairs - 1) + 1  # rounded up
        least = root + -(-vocabulary.num_pairs // root)
        raise BudgetError(
            f"budget is too small for method qr: {vocabulary.num_pairs} pairs need "
            f"{least} rows of {width} values, {table_bytes(least, width, optimizer)} "
            f"bytes, got {budget}"
        )

    def make_embed(rngs: nnx.Rngs) -> Embed:
        return QuotientRemainderEmbed(
            *split,
            width,
            optimizer,
            initial_scale=request.initial_scale,
            rngs=rngs,
        )

    return Method(width, make_embed, vocabulary.rows, prunes=False)


def split_rows(num_rows: int, num_pairs: int) -> tuple[int, int] | None:
    """Divide rows into remainder rows, as many as possible, and quotient rows.

    Args:
      num_rows: rows that fit.
      num_pairs: N.

    Returns:
      m and the ceiling of N / m; `None` if no m makes their sum fit.

    >>> split_rows(8, 15), split_rows(7, 15), split_rows(100, 15)
    ((5, 3), None, (15, 1))
    """
    # m + N / m <= R holds between the roots of m^2 - R m + N.
    square = num_rows**2 - 4 * num_pairs
    if square < 0:
        return None
    remainders = min((num_rows + math.isqrt(square)) // 2, num_pairs)
    quotients = -(-num_pairs // remainders)
    return (remainders, quotients) if remainders + quotients <= num_rows else None
