"""The embedding store: the transitions of a state, checked and assembled."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from . import admission, invariants, memory, pinning, pruning, update
from .admission import AdmitInfo
from .arena import init_arena
from .chunk_pool import init_pool
from .coarse import coarse_start, read_coarse
from .config import EmbeddingConfig
from .extent import Runs, frames_of_runs, gather_vectors, runs_of_entries
from .handle import Handle, Lookups, make_handle
from .keys import Keys, canonicalize_ids, canonicalize_tables
from .memory import MemoryReport
from .page_table import init_page_table, probe, probe_runs
from .precision import from_stored
from .pruning import PruneInfo
from .row_numbers import within_sizes
from .shared_pool import fallback_frames, init_shared
from .sparse_optim import SparseOptimizer
from .state import EmbeddingState
from .update import ApplyInfo

__all__ = ["EmbeddingStore", "predict_memory"]

Ids = jax.Array | np.ndarray | Keys
Tables = jax.Array | np.ndarray | int


@dataclasses.dataclass(frozen=True)
class EmbeddingStore:
    """Embedding vectors of pruned lengths under one budget: pure functions of a state.

    Static and hashable; holds no arrays. Every method can be jitted with the state
    donated, `jax.jit(store.prune_step, donate_argnums=0)`.

    Attributes:
      config: sizes and rules.
      optimizer: from `fj.sparse` or `fj.rowwise_adagrad`.

    Raises:
      ValueError: if `config` came from a budget that counted another optimizer's
        state, or the optimizer is not elementwise, or its state cannot be coarse, see
        `EmbeddingConfig.fallback`.

    >>> import fiited_jax as fj
    >>> config = fj.EmbeddingConfig(
    ...     embedding_dim=4, chunk_dim=2, num_entries=32, num_frames=9)
    >>> store = fj.EmbeddingStore(config, fj.rowwise_adagrad(0.1))
    >>> state = store.init(jax.random.key(0))
    >>> state, handle, info = store.admit(state, jnp.array([7, 7, -1]))
    >>> int(info.admitted), store.gather(state, handle).shape
    (1, (3, 4))

    References:
      Luo et al., "Fine-grained embedding dimension optimization during training for
      recommender systems", arXiv:2401.04408. Deviations: the page table is hashed
      and bounded, an entry names a run of frames and not each of them, vectors are
      ranked by length unless `ranking="chunks"`, all sizes are fixed at `init`. Rules
      per table, values of 16 bits, the shared pool, coarse values and the admission
      filter are ours.
    """

    config: EmbeddingConfig
    optimizer: SparseOptimizer

    def __post_init__(self) -> None:
        """Check that the two belong together."""
        if not isinstance(self.config, EmbeddingConfig):
            raise TypeError(f"config must be an EmbeddingConfig, got {self.config!r}")
        if not isinstance(self.optimizer, SparseOptimizer):
            raise TypeError(
                "optimizer must be a SparseOptimizer, made by fj.sparse or "
                f"fj.rowwise_adagrad, got {self.optimizer!r}"
            )
        self.optimizer.check_num_tables(self.config.num_tables)
        if self.optimizer.table_scale is not None and self.config.num_shared:
            raise ValueError(
                "table_scale must be None with fallback='shared', whose vectors belong "
                f"to no table; got {self.optimizer.table_scale}"
            )
        if self.config.coarse_dim:
            coarse_start(self.optimizer, self.config.chunk_dim)
        specs = self.optimizer.slot_specs(self.config.chunk_dim)
        if self.config.budgeted_slots not in (None, specs):
            raise ValueError(
                "optimizer must be the one that from_budget counted, with slots "
                f"{self.config.budgeted_slots}; got one with {specs}"
            )

    def init(self, key: jax.Array) -> EmbeddingState:
        """Allocate a state in which nothing is tracked.

        Args:
          key: a JAX random key, consumed; it drives the initial values.

        Returns:
          An `EmbeddingState`.
        """
        config = self.config
        seed = jax.random.bits(key, (2,), jnp.uint32)
        return EmbeddingState(
            step=jnp.int32(0),
            decayed_at=jnp.int32(0),
            threshold=jnp.float32(0.0),
            seed=seed,
            pages=init_page_table(config),
            pool=init_pool(
                config.num_frames,
                config.chunk_dim,
                self.optimizer,
                config.stored_dtype,
                config.line_group,
            ),
            arena=init_arena(),
            shared=init_shared(seed, config, self.optimizer),
            doorkeeper=(
                jnp.zeros(config.filter_slots, jnp.uint8)
                if config.filter_slots
                else None
            ),
        )

    def admit(
        self, state: EmbeddingState, ids: Ids, *, tables: Tables = 0
    ) -> tuple[EmbeddingState, Handle, AdmitInfo]:
        """Find ids, and give new ones an entry and `initial_chunks` frames.

        A new key takes a free way of its bucket, else evicts the entry of lowest
        utility that this batch does not use, else gets none: it then reads as
        `config.fallback` says and counts as failed. So give all ids of a step to one
        call: a later one may evict what an earlier one has admitted. With an admission
        filter, a key that has not come before only evicts what is worth next to
        nothing, see `EmbeddingConfig.filter_slots`. With `table_sizes` every row has
        its entry, and counts as new until it has a chunk or a utility.

        Args:
          state: the store's state; donate it.
          ids: `i32[...]` (negative is padding), `u32[...]` or `Keys`.
          tables: integers that broadcast against `ids`.

        Returns:
          The state, the batch's `Handle` and an `AdmitInfo`.

        Raises:
          TypeError, ValueError: on ids or tables of a wrong dtype or shape.
        """
        self._check_state(state)
        lookups = self._lookups(ids, tables)
        return admission.admit(state, lookups, self.config, self.optimizer)

    def find(self, state: EmbeddingState, ids: Ids, *, tables: Tables = 0) -> Handle:
        """Find ids and change nothing.

        Args:
          state: the store's state.
          ids: as for `admit`.
          tables: as for `admit`.

        Returns:
          A `Handle`; ids that are not tracked have no entry.

        Raises:
          TypeError, ValueError: as `admit`.
        """
        self._check_state(state)
        lookups = self._lookups(ids, tables)
        keys, tables = lookups.keys, lookups.tables
        entries = probe(state.pages, keys, tables, lookups.valid, self.config)
        return make_handle(lookups, entries)

    def gather(self, state: EmbeddingState, handle: Handle) -> jax.Array:
        """Read the vectors of a batch, un-pooled.

        Args:
          state: the state that the handle came with.
          handle: from `admit` or `find`.

        Returns:
          `f32[..., D]`; padding is zeros, absent chunks as `config.fallback` says.
        """
        self._check_state(state)
        self._check_handle(handle)
        runs = runs_of_entries(state.pages, handle.entries)
        return self._read(state, handle, runs)

    def lookup(
        self, state: EmbeddingState, ids: Ids, *, tables: Tables = 0
    ) -> jax.Array:
        """Find and gather, for evaluation and serving; writes nothing.

        Args:
          state: the store's state.
          ids: as for `admit`.
          tables: as for `admit`.

        Returns:
          `f32[..., D]`.

        Raises:
          TypeError, ValueError: as `admit`.
        """
        self._check_state(state)
        lookups = self._lookups(ids, tables)
        keys, tables = lookups.keys, lookups.tables
        entries, runs = probe_runs(
            state.pages, keys, tables, lookups.valid, self.config
        )
        handle = make_handle(lookups, entries)
        shape = handle.entries.shape
        runs = Runs(*(jnp.reshape(column, shape) for column in runs))
        return self._read(state, handle, runs)

    def apply_gradients(
        self, state: EmbeddingState, handle: Handle, vector_grads: jax.Array
    ) -> tuple[EmbeddingState, ApplyInfo]:
        """Step the frames of a batch and score its chunks.

        Gradients of one key are summed first. A chunk without a frame is scored too:
        its gradient is known. A chunk whose summed gradient has no finite norm, or
        whose values or slots would not be finite, keeps values, slots and utility.
        A handle may be applied more than once.

        Args:
          state: the store's state; donate it.
          handle: from `admit` or `find`.
          vector_grads: floating point `[..., D]`, with respect to what `gather`
            returned.

        Returns:
          The state, one step on, and an `ApplyInfo`.

        Raises:
          ValueError: on gradients of another shape than the vectors.
          TypeError: on gradients that are not an array of floating point.
        """
        self._check_state(state)
        self._check_handle(handle)
        if not isinstance(vector_grads, jax.Array | np.ndarray):
            raise TypeError(f"vector_grads must be an array, got {vector_grads!r}")
        expected = (*handle.mask.shape, self.config.embedding_dim)
        if vector_grads.shape != expected:
            raise ValueError(
                f"vector_grads must have the shape of the vectors, {expected}; "
                f"got {vector_grads.shape}"
            )
        if not jnp.issubdtype(vector_grads.dtype, jnp.floating):
            raise TypeError(
                f"vector_grads must be floating point, got {vector_grads.dtype}"
            )
        return update.apply_gradients(
            state, handle, vector_grads, self.config, self.optimizer
        )

    def pin(
        self, state: EmbeddingState, ids: Ids, *, tables: Tables = 0
    ) -> tuple[EmbeddingState, jax.Array]:
        """Keep keys whatever they score: not evicted, and first in every ranking.

        A pinned key gets all its chunks at the next `prune_step`, while there are
        frames. Only tracked keys can be pinned, admit the others first; with
        `config.table_sizes` all rows can.

        Args:
          state: the store's state; donate it.
          ids: as for `admit`.
          tables: as for `admit`.

        Returns:
          The state; and `bool[...]`, true for ids that are pinned now.

        Raises:
          TypeError, ValueError: as `admit`.
        """
        self._check_state(state)
        return pinning.pin(state, self._lookups(ids, tables), self.config)

    def unpin(
        self, state: EmbeddingState, ids: Ids, *, tables: Tables = 0
    ) -> tuple[EmbeddingState, jax.Array]:
        """Let pinned keys compete again, worth what a frame took at the last ranking.

        Args:
          state: the store's state; donate it.
          ids: as for `admit`.
          tables: as for `admit`.

        Returns:
          The state; and `bool[...]`, true for ids that were pinned.

        Raises:
          TypeError, ValueError: as `admit`.
        """
        self._check_state(state)
        return pinning.unpin(state, self._lookups(ids, tables), self.config)

    def prune_step(self, state: EmbeddingState) -> tuple[EmbeddingState, PruneInfo]:
        """Give the frames to the chunks of highest utility, between updates.

        All chunks of all tables compete by the priorities of `config.ranking`, over
        `config.utility_scale` and behind `config.table_floors`: the best
        `config.target_frames` are chosen exactly (ties go to lower indices), the others
        lose their frames, and chosen chunks without a frame get one, fresh in values
        and optimizer state. Runs of frames move, in place, so that none are idle. If
        less than `config.hysteresis` of the frames in use would change, nothing moves.
        Utilities are decayed to now in any case.

        Args:
          state: the store's state; donate it. Its handles stay valid.

        Returns:
          The state and a `PruneInfo`.

        References:
          arXiv:2401.04408. The interval at which to call it is not published.
        """
        self._check_state(state)
        return pruning.prune_step(state, self.config, self.optimizer)

    def prune_temporary_bytes(self) -> int:
        """Return the bytes that `prune_step` needs beside the state, as compiled.

        Compiles the step for the default device; allocates nothing.

        Raises:
          NotImplementedError: on a backend that does not report it.
        """
        state = _state_shapes(self)
        step = jax.jit(self.prune_step, donate_argnums=0).lower(state).compile()
        analysis = step.memory_analysis()
        if analysis is None:
            raise NotImplementedError("this backend does not report its memory use")
        return analysis.temp_size_in_bytes

    def memory_report(
        self, state: EmbeddingState, *, num_ids: int | Sequence[int] | None = None
    ) -> MemoryReport:
        """Count the bytes of the live arrays, by component and by table; host side.

        Args:
          state: the store's state.
          num_ids: distinct (table, id) pairs that dense tables would hold, of all or
            of each, which `config.table_dims` asks for; without it there is nothing
            to compare with.

        Returns:
          A `MemoryReport`.
        """
        self._check_state(state)
        report = dataclasses.replace(
            memory.count_bytes(state, self.config),
            tables=memory.table_uses(state, self.config),
        )
        return self._against_dense(report, num_ids)

    def check_invariants(self, state: EmbeddingState) -> None:
        """Check on the host that a state is whole.

        Args:
          state: the store's state.

        Raises:
          ValueError: saying what is broken, and where.
        """
        self._check_state(state)
        invariants.check_invariants(state, self.config)

    def _read(self, state: EmbeddingState, handle: Handle, runs: Runs) -> jax.Array:
        """Read the vectors of a batch, given where their frames are."""
        config, fallback = self.config, None
        if state.shared is not None:
            frames = fallback_frames(handle, frames_of_runs(runs, config), config)
            fallback = state.shared.values, frames
        chunks = from_stored(gather_vectors(state.pool.values, runs, config, fallback))
        if state.pages.coarse is not None:
            chunks += read_coarse(state.pages, handle.entries, runs, config)
        return chunks.reshape(*handle.mask.shape, config.embedding_dim)

    def _check_state(self, state: EmbeddingState) -> None:
        """Refuse a state of another store; sizes are static, so this costs nothing."""
        if not isinstance(state, EmbeddingState):
            raise TypeError(
                f"state must be an EmbeddingState, got {type(state).__name__}"
            )
        wanted = _state_shapes(self)
        if jax.tree.structure(state) != jax.tree.structure(wanted):
            raise ValueError(
                "state must be one that this store has made; its optimizer state, the "
                "words of its ids or its num_ways are others"
            )
        for (path, leaf), shape in zip(
            jax.tree_util.tree_leaves_with_path(state),
            jax.tree.leaves(wanted),
            strict=True,
        ):
            if (leaf.shape, leaf.dtype) != (shape.shape, shape.dtype):
                raise ValueError(
                    "state must be one that this store has made, with "
                    f"state{jax.tree_util.keystr(path)} {shape.dtype}{shape.shape}; "
                    f"got {leaf.dtype}{leaf.shape}"
                )

    def _check_handle(self, handle: Handle) -> None:
        if not isinstance(handle, Handle):
            raise TypeError(f"handle must be a Handle, got {type(handle).__name__}")

    def _against_dense(
        self, report: MemoryReport, num_ids: int | Sequence[int] | None
    ) -> MemoryReport:
        if num_ids is None:
            return report
        dims = self.config.table_dims or self.config.embedding_dim
        return report.against_dense(num_ids, dims, self.optimizer)

    def _lookups(self, ids: Ids, tables: Tables) -> Lookups:
        keys, mask = canonicalize_ids(ids)
        wide, in_range = canonicalize_tables(tables, mask.shape, self.config.num_tables)
        sizes = self.config.table_sizes
        if sizes is not None:
            in_range = within_sizes(keys.low, wide, sizes)
        if sizes is not None or self.config.id_bits == 32:
            in_range &= keys.high == 0
        flat = Keys(*(jnp.reshape(word, -1) for word in keys))
        return Lookups(flat, wide.reshape(-1), (mask & in_range).reshape(-1), mask)


@functools.cache
def _state_shapes(store: EmbeddingStore) -> EmbeddingState:
    """What `store.init` makes, as shapes."""
    return jax.eval_shape(store.init, jax.random.key(0))


def predict_memory(
    config: EmbeddingConfig,
    optimizer: SparseOptimizer,
    *,
    num_ids: int | Sequence[int] | None = None,
) -> MemoryReport:
    """Count the bytes of a state before it is allocated.

    Args:
      config: sizes and rules.
      optimizer: whose state is counted.
      num_ids: as for `EmbeddingStore.memory_report`.

    Returns:
      A `MemoryReport` without tables.

    >>> import fiited_jax as fj
    >>> optimizer = fj.rowwise_adagrad(0.1)
    >>> config = fj.EmbeddingConfig.from_budget(
    ...     "1MiB", embedding_dim=16, chunk_dim=4, optimizer=optimizer)
    >>> fj.predict_memory(config, optimizer).all_in_bytes <= 1 << 20
    True
    """
    store = EmbeddingStore(config, optimizer)
    return store._against_dense(
        memory.count_bytes(_state_shapes(store), config), num_ids
    )
