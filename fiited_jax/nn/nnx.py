"""The store as a flax nnx module."""

from collections.abc import Sequence

import jax
from flax import nnx

from ..admission import AdmitInfo
from ..config import EmbeddingConfig
from ..handle import Handle
from ..memory import MemoryReport
from ..pruning import PruneInfo
from ..sparse_optim import SparseOptimizer
from ..state import EmbeddingState
from ..store import EmbeddingStore, Ids, Tables
from ..update import ApplyInfo

__all__ = ["PagedEmbed", "StoreState"]


class StoreState(nnx.Variable):
    """Holds an `EmbeddingState`; no `nnx.Param`, so dense optimizers never see it."""


class PagedEmbed(nnx.Module):
    """Embedding vectors from an `EmbeddingStore`, as a stateful module.

    Calling it looks ids up and writes nothing. Training is explicit: `admit`,
    `gather`, a loss differentiated with respect to the gathered vectors, then
    `apply_gradients`; and `prune_step` every so many steps. Jit these with the module
    donated, or every step copies the state.

    Attributes:
      store: the static store.
      state: a `StoreState` variable that holds the `EmbeddingState`.

    >>> import fiited_jax as fj
    >>> import jax.numpy as jnp
    >>> config = fj.EmbeddingConfig(
    ...     embedding_dim=4, chunk_dim=2, num_entries=32, num_frames=9)
    >>> embed = PagedEmbed(config, fj.rowwise_adagrad(0.1), rngs=nnx.Rngs(0))
    >>> handle, info = embed.admit(jnp.array([3, 5]))
    >>> info = embed.apply_gradients(handle, jnp.ones((2, 4)))
    >>> embed(jnp.array([3, 5])).shape
    (2, 4)
    """

    def __init__(
        self, config: EmbeddingConfig, optimizer: SparseOptimizer, *, rngs: nnx.Rngs
    ) -> None:
        """Allocate the state.

        Args:
          config: sizes and rules.
          optimizer: from `fj.sparse` or `fj.rowwise_adagrad`.
          rngs: gives the key of the initial values, from its `params` stream.
        """
        self.store = EmbeddingStore(config, optimizer)
        self.state = StoreState(self.store.init(rngs.params()))

    def __call__(self, ids: Ids, *, tables: Tables = 0) -> jax.Array:
        """Look ids up, `f32[..., D]`; see `EmbeddingStore.lookup`."""
        return self.store.lookup(self._value, ids, tables=tables)

    def admit(self, ids: Ids, *, tables: Tables = 0) -> tuple[Handle, AdmitInfo]:
        """Find ids and page new ones in; see `EmbeddingStore.admit`."""
        state, handle, info = self.store.admit(self._value, ids, tables=tables)
        self.state.set_value(state)
        return handle, info

    def find(self, ids: Ids, *, tables: Tables = 0) -> Handle:
        """Find ids and change nothing; see `EmbeddingStore.find`."""
        return self.store.find(self._value, ids, tables=tables)

    def gather(self, handle: Handle) -> jax.Array:
        """Read the vectors of a batch, `f32[..., D]`; see `EmbeddingStore.gather`."""
        return self.store.gather(self._value, handle)

    def apply_gradients(self, handle: Handle, vector_grads: jax.Array) -> ApplyInfo:
        """Step and score the chunks; see `EmbeddingStore.apply_gradients`."""
        state, info = self.store.apply_gradients(self._value, handle, vector_grads)
        self.state.set_value(state)
        return info

    def prune_step(self) -> PruneInfo:
        """Move frames to the chunks of highest utility; see `EmbeddingStore`."""
        state, info = self.store.prune_step(self._value)
        self.state.set_value(state)
        return info

    def memory_report(
        self, *, num_ids: int | Sequence[int] | None = None
    ) -> MemoryReport:
        """Count the bytes of the live arrays; see `EmbeddingStore.memory_report`."""
        return self.store.memory_report(self._value, num_ids=num_ids)

    def prune_temporary_bytes(self) -> int:
        """Return what `prune_step` needs beside the state; see `EmbeddingStore`."""
        return self.store.prune_temporary_bytes()

    @property
    def _value(self) -> EmbeddingState:
        return self.state.get_value()
