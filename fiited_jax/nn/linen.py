"""The store as a flax linen module."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from ..admission import AdmitInfo
from ..config import EmbeddingConfig
from ..handle import Handle
from ..memory import MemoryReport
from ..pruning import PruneInfo
from ..sparse_optim import SparseOptimizer
from ..state import EmbeddingState
from ..store import EmbeddingStore, Ids, Tables
from ..update import ApplyInfo

__all__ = ["STORE", "PagedEmbed"]

STORE = "embedding_store"
"""The variable collection of the states; not `params`: dense optimizers skip it."""


class PagedEmbed(nn.Module):
    """Embedding vectors from an `EmbeddingStore`, as a linen module.

    Calling it looks ids up and writes nothing. Training is explicit: `admit`,
    `gather`, a loss differentiated with respect to the gathered vectors, then
    `apply_gradients`; and `prune_step` every so many steps. What changes the state
    writes the collection `STORE`: apply it with `mutable=[STORE]` and go on with the
    collection that comes back. Under `init` nothing is admitted or stepped. Jit a step
    with the collection donated, as an argument of its own, or it copies the state.

    Attributes:
      config: sizes and rules.
      optimizer: from `fj.sparse` or `fj.rowwise_adagrad`.
      store: the static store.
      state: the variable that holds the `EmbeddingState`; the key of its initial
        values is from the `params` stream.

    >>> import functools
    >>> import fiited_jax as fj
    >>> import jax.numpy as jnp
    >>> class Model(nn.Module):
    ...     def setup(self):
    ...         config = fj.EmbeddingConfig(
    ...             embedding_dim=4, chunk_dim=2, num_entries=32, num_frames=9)
    ...         self.embed = PagedEmbed(config, fj.rowwise_adagrad(0.1))
    ...         self.top = nn.Dense(1)
    ...     def __call__(self, ids):  # to initialize, to evaluate
    ...         return self.head(self.embed(ids))
    ...     def head(self, vectors):
    ...         return self.top(vectors)
    ...     def admit(self, ids):
    ...         handle, _ = self.embed.admit(ids)
    ...         return handle, self.embed.gather(handle)
    ...     def apply_gradients(self, handle, grads):
    ...         return self.embed.apply_gradients(handle, grads)
    >>> model, ids = Model(), jnp.array([3, 5])
    >>> variables = model.init(jax.random.key(0), ids)
    >>> params, store = variables["params"], {STORE: variables[STORE]}
    >>> @functools.partial(jax.jit, donate_argnums=1)
    ... def train_step(params, store, ids):
    ...     (handle, vectors), store = model.apply(
    ...         {"params": params, **store}, ids, method="admit", mutable=[STORE])
    ...     def loss_fn(params, vectors):
    ...         return model.apply({"params": params}, vectors, method="head").sum()
    ...     loss, (dense, grads) = jax.value_and_grad(
    ...         loss_fn, argnums=(0, 1))(params, vectors)
    ...     _, store = model.apply(
    ...         store, handle, grads, method="apply_gradients", mutable=[STORE])
    ...     return store, loss, dense  # `dense` is for an optimizer of `params`
    >>> store, loss, dense = train_step(params, store, ids)
    >>> model.apply({"params": params, **store}, ids).shape, sorted(dense)
    ((2, 1), ['top'])
    """

    config: EmbeddingConfig
    optimizer: SparseOptimizer

    @property
    def store(self) -> EmbeddingStore:
        """The static store, also of a module that is not bound."""
        return EmbeddingStore(self.config, self.optimizer)

    def setup(self) -> None:
        """Allocate the state, where the collection does not hold it yet."""
        self.state = self.variable(
            STORE, "state", lambda: self.store.init(self.make_rng("params"))
        )

    def __call__(self, ids: Ids, *, tables: Tables = 0) -> jax.Array:
        """Look ids up, `f32[..., D]`; see `EmbeddingStore.lookup`."""
        return self.store.lookup(self.state.value, ids, tables=tables)

    def admit(self, ids: Ids, *, tables: Tables = 0) -> tuple[Handle, AdmitInfo]:
        """Find ids and page new ones in; see `EmbeddingStore.admit`."""
        state, handle, info = self.store.admit(self.state.value, ids, tables=tables)
        self._write(state)
        return handle, info

    def find(self, ids: Ids, *, tables: Tables = 0) -> Handle:
        """Find ids and change nothing; see `EmbeddingStore.find`."""
        return self.store.find(self.state.value, ids, tables=tables)

    def gather(self, handle: Handle) -> jax.Array:
        """Read the vectors of a batch, `f32[..., D]`; see `EmbeddingStore.gather`."""
        return self.store.gather(self.state.value, handle)

    def apply_gradients(self, handle: Handle, vector_grads: jax.Array) -> ApplyInfo:
        """Step and score the chunks; see `EmbeddingStore.apply_gradients`."""
        state, info = self.store.apply_gradients(self.state.value, handle, vector_grads)
        self._write(state)
        return info

    def prune_step(self) -> PruneInfo:
        """Move frames to the chunks of highest utility; see `EmbeddingStore`."""
        state, info = self.store.prune_step(self.state.value)
        self._write(state)
        return info

    def memory_report(
        self, *, num_ids: int | Sequence[int] | None = None
    ) -> MemoryReport:
        """Count the bytes of the live arrays; see `EmbeddingStore.memory_report`."""
        return self.store.memory_report(self.state.value, num_ids=num_ids)

    def prune_temporary_bytes(self) -> int:
        """Return what `prune_step` needs beside the state; see `EmbeddingStore`."""
        return self.store.prune_temporary_bytes()

    def _write(self, state: EmbeddingState) -> None:
        if not self.is_initializing():  # `init` traces a training step, and takes none
            self.state.value = state
