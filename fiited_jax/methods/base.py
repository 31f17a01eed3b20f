"""What the trainer asks of an embedding method."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx

from ..memory import MemoryReport
from ..scorers import Scorer
from ..sparse_optim import SparseOptimizer

__all__ = ["Embed", "Method", "Request", "Rows", "required_budget"]


class Embed(Protocol):
    """An embedding module: `fj.nnx.PagedEmbed`, or a baseline with its functions."""

    def __call__(self, ids: Any, *, tables: Any = 0) -> jax.Array:
        """Look ids up; writes nothing."""
        ...

    def admit(self, ids: Any, *, tables: Any = 0) -> tuple[Any, Any]:
        """Prepare a training batch: its handle, and an info of counters."""
        ...

    def gather(self, handle: Any) -> jax.Array:
        """Read the vectors of a batch."""
        ...

    def apply_gradients(self, handle: Any, vector_grads: jax.Array) -> Any:
        """Update from gradients with respect to the gathered vectors."""
        ...

    def prune_step(self) -> Any:
        """Do what a method does between updates, every so many steps."""
        ...

    def memory_report(self) -> MemoryReport:
        """Count the bytes of the live arrays."""
        ...


class Rows(Protocol):
    """The distinct (table, id) pairs of a training split, numbered."""

    @property
    def num_pairs(self) -> int:
        """How many there are."""
        ...

    @property
    def tables(self) -> tuple[np.ndarray, ...]:
        """Per table its distinct ids; pairs are numbered table after table."""
        ...

    @property
    def id_bits(self) -> int:
        """32 if that is enough for every id, else 64."""
        ...

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each pair, -1 for an unknown one."""
        ...


@dataclasses.dataclass(frozen=True)
class Request:
    """What to build.

    Attributes:
      embedding_dim: D of the full table.
      chunk_dim: C, for methods that prune chunks.
      num_tables: tables of the data.
      budget: all-in bytes; `None` only for methods that need none.
      optimizer: for the embeddings.
      vocabulary: the pairs of the training split.
      scorer: for methods that rank.
      ranking: as for `EmbeddingConfig`.
      length_alpha: as for `EmbeddingConfig`.
      half_life: of utilities, in steps.
      frames_per_entry: as for `EmbeddingConfig.from_budget`.
      filter_share: as for `EmbeddingConfig.from_budget`.
      fallback: as for `EmbeddingConfig`, or of method fiited `"auto"`.
      coarse_step: as for `EmbeddingConfig`.
      lookups_per_id: of the training split, the mean; `None` if that is not known.
      shared_share: as for `EmbeddingConfig.from_budget`.
      value_dtype: as for `EmbeddingConfig`.
      page_table: of method fiited: `"hashed"`; `"rows"`, an entry for every id of the
        training split; or `"auto"`.
      initial_scale: initial values are uniform in `[-initial_scale, initial_scale)`.
    """

    embedding_dim: int
    chunk_dim: int
    num_tables: int
    budget: int | None
    optimizer: SparseOptimizer
    vocabulary: Rows
    scorer: Scorer
    half_life: float = 2000.0
    ranking: Literal["lengths", "chunks"] = "lengths"
    length_alpha: float = 4.0
    frames_per_entry: float | None = None
    filter_share: float = 0.0
    fallback: Literal["auto", "zero", "shared", "coarse"] = "zero"
    coarse_step: float = 1 / 64
    lookups_per_id: float | None = None
    shared_share: float = 0.5
    value_dtype: Literal["float32", "bfloat16"] = "float32"
    page_table: Literal["auto", "hashed", "rows"] = "auto"
    initial_scale: float = 0.01


class Method(NamedTuple):
    """A method, ready to be built.

    Attributes:
      embedding_dim: width of the vectors it gives.
      make_embed: allocates the embedding module.
      encode: turns `int64[B, F]` ids into what the module takes; on the host.
      prunes: whether `prune_step` does anything.
      restart: for a method that is trained twice: takes the module from the end of the
        first training to the start of the second, which is the one that counts.
    """

    embedding_dim: int
    make_embed: Callable[[nnx.Rngs], Embed]
    encode: Callable[[np.ndarray], Any]
    prunes: bool
    restart: Callable[[Any], None] | None = None


def required_budget(request: Request) -> int:
    """Return the budget of a method that cannot do without.

    Raises:
      ValueError: if there is none.
    """
    if request.budget is None:
        raise ValueError("budget must be given for this method, got None")
    return request.budget
