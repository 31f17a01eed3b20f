"""A table whose values must exceed thresholds: the embedding module of `pep`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from ..bidding import find_leaders
from ..chunk_pool import init_pool, read_values, write_fresh
from ..key_rows import sum_duplicates
from ..keys import canonicalize_ids
from ..memory import MemoryReport, count_arrays
from ..sparse_optim import SparseOptimizer
from ..state import NULL_FRAME, ChunkPool
from ..store import Ids, Tables
from .table_embed import TableInfo, TableState, init_rows, step_summed

__all__ = ["PepEmbed", "PepState", "largest", "soft_threshold", "soft_threshold_grads"]

# Of the thresholds after the search: their sigmoids are exactly 0 and 1.
_OPEN, _CLOSED = -1000.0, 1000.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PepState:
    """Values and thresholds.

    Attributes:
      rows: the values.
      thresholds: one per value, before the sigmoid.
      is_fixed: `bool[]` whether the search is over: thresholds are not trained.
      seed: `u32[2]` of the initial values.
    """

    rows: ChunkPool
    thresholds: ChunkPool
    is_fixed: jax.Array
    seed: jax.Array


class PepEmbed(nnx.Module):
    """Rows by the number of their pair, of which a search chooses the values kept.

    A handle holds frames, `i32[...]`, as that of `TableEmbed` does.

    Attributes:
      state: a `TableState` variable that holds a `PepState`.
    """

    def __init__(
        self,
        num_rows: int,
        embedding_dim: int,
        optimizer: SparseOptimizer,
        *,
        num_kept: int,
        initial_scale: float,
        initial_threshold: float,
        threshold_decay: float,
        rngs: nnx.Rngs,
    ) -> None:
        """Allocate values and thresholds.

        Args:
          num_rows: rows.
          embedding_dim: values per row.
          optimizer: for values and thresholds.
          num_kept: values that `restart` keeps.
          initial_scale: initial values are uniform in
            `[-initial_scale, initial_scale)`.
          initial_threshold: of all values, before the sigmoid.
          threshold_decay: times the threshold, added to its gradient.
          rngs: gives the key of the initial values, from its `params` stream.
        """
        self.num_rows, self.embedding_dim = num_rows, embedding_dim
        self.optimizer, self.num_kept = optimizer, num_kept
        self.initial_scale, self.threshold_decay = initial_scale, threshold_decay
        seed = jax.random.bits(rngs.params(), (2,), jnp.uint32)
        shape = (num_rows, embedding_dim)
        thresholds = jnp.full(shape, initial_threshold, jnp.float32)
        state = PepState(
            rows=init_rows(num_rows, embedding_dim, optimizer, initial_scale, seed),
            thresholds=_fresh_rows(thresholds, optimizer),
            is_fixed=jnp.zeros((), bool),
            seed=seed,
        )
        self.state = TableState(state)

    def __call__(self, ids: Ids, *, tables: Tables = 0) -> jax.Array:
        """Look pair numbers up, `f32[..., D]`; writes nothing."""
        return self.gather(self.admit(ids)[0])

    def admit(self, ids: Ids, *, tables: Tables = 0) -> tuple[jax.Array, None]:
        """Return the frames of pair numbers; nothing is admitted."""
        keys, valid = canonicalize_ids(ids)
        return jnp.where(valid, keys.low.astype(jnp.int32) + 1, NULL_FRAME), None

    def gather(self, handle: jax.Array) -> jax.Array:
        """Read what of the values exceeds their thresholds, `f32[..., D]`."""
        return soft_threshold(*self._read(handle))

    def apply_gradients(self, handle: jax.Array, vector_grads: jax.Array) -> TableInfo:
        """Step values and thresholds along their summed gradients, where finite.

        Returns:
          The counters of the values.
        """
        state, frames = self._state, handle.reshape(-1)
        grads = vector_grads.reshape(-1, self.embedding_dim).astype(jnp.float32)
        leaders = find_leaders(frames, frames != NULL_FRAME)
        summed = sum_duplicates(leaders, grads)
        leads = leaders == jnp.arange(frames.size)
        frames = jnp.where(leads, frames, NULL_FRAME)
        values, thresholds = self._read(frames)
        of_values, of_thresholds = soft_threshold_grads(values, thresholds, summed)
        rows, info = step_summed(state.rows, frames, of_values, self.optimizer)
        pool, _ = step_summed(
            state.thresholds,
            jnp.where(state.is_fixed, NULL_FRAME, frames),
            of_thresholds + self.threshold_decay * thresholds,
            self.optimizer,
        )
        self.state.set_value(dataclasses.replace(state, rows=rows, thresholds=pool))
        return info

    def prune_step(self) -> None:
        """Nothing is pruned between updates."""

    def restart(self) -> None:
        """End the search: values start again, those that are not kept at zero.

        Kept are the `num_kept` that exceed their thresholds most, or are least below
        them. Work proportional to the table; the initial values are drawn anew.
        """
        state = self._state
        values, thresholds = map(self._whole, (state.rows, state.thresholds))
        is_kept = largest(jnp.abs(values) - nnx.sigmoid(thresholds), self.num_kept)
        first = init_rows(*values.shape, self.optimizer, self.initial_scale, state.seed)
        restarted = PepState(
            rows=_fresh_rows(
                jnp.where(is_kept, self._whole(first), 0.0), self.optimizer
            ),
            thresholds=_fresh_rows(jnp.where(is_kept, _OPEN, _CLOSED), self.optimizer),
            is_fixed=jnp.ones((), bool),
            seed=state.seed,
        )
        self.state.set_value(restarted)

    def memory_report(self) -> MemoryReport:
        """Count the bytes of all arrays, and those of the values that are not pruned.

        The thresholds, in the end the mask, count as runs.
        """
        state = self._state
        values, thresholds = map(self._whole, (state.rows, state.thresholds))
        num_left = int(jnp.sum(jnp.abs(values) >= nnx.sigmoid(thresholds)))
        return MemoryReport(
            runs=count_arrays(state.thresholds.values),
            values=count_arrays(state.rows.values),
            slots=count_arrays((state.rows.slots, state.thresholds.slots)),
            other=count_arrays((state.is_fixed, state.seed)),
            unpruned_values=4 * num_left,
        )

    def _read(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, width = self._state, self.embedding_dim
        return (
            read_values(state.rows, frames, width),
            read_values(state.thresholds, frames, width),
        )

    def _whole(self, pool: ChunkPool) -> jax.Array:
        """Return all rows of a pool, `f32[rows, D]`."""
        return pool.values.reshape(-1, self.embedding_dim)[1 : self.num_rows + 1]

    @property
    def _state(self) -> PepState:
        return self.state.get_value()


def soft_threshold(values: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Return `sign(v) relu(|v| - sigmoid(s))`.

    >>> soft_threshold(jnp.array([0.75, -0.75, 0.25]), jnp.zeros(3)).tolist()
    [0.25, -0.25, 0.0]
    """
    excess = jnp.abs(values) - nnx.sigmoid(thresholds)
    return jnp.sign(values) * jnp.maximum(excess, 0.0)


def soft_threshold_grads(
    values: jax.Array, thresholds: jax.Array, grads: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of values and thresholds from those of `soft_threshold`.

    A value below its threshold has none. One that is not finite stays so.
    """
    height = nnx.sigmoid(thresholds)
    # At the threshold the value counts as above: a kept one may pass through zero.
    passes = (jnp.abs(values) >= height) | ~jnp.isfinite(grads)
    of_values = jnp.where(passes, grads, 0.0)
    return of_values, -of_values * jnp.sign(values) * height * (1 - height)


def largest(scores: jax.Array, count: int) -> jax.Array:
    """Choose the largest scores; of equal ones those that come first.

    Args:
      scores: `f32[...]`.
      count: how many, at least 1.

    Returns:
      `bool[...]`, true in exactly `count` places.

    >>> largest(jnp.array([1.0, 3.0, 1.0, 2.0, 1.0]), 3).tolist()
    [True, True, False, True, False]
    """
    least = jnp.sort(scores, axis=None)[scores.size - count]
    is_above, is_least = scores > least, scores == least
    rank = jnp.cumsum(is_least).reshape(scores.shape)
    return is_above | (is_least & (rank <= count - jnp.sum(is_above)))


@functools.partial(jax.jit, static_argnums=1)
def _fresh_rows(values: jax.Array, optimizer: SparseOptimizer) -> ChunkPool:
    """Return a pool of rows that hold `values`, in the frames from 1 up."""
    num_rows, width = values.shape
    frames = jnp.arange(1, num_rows + 1, dtype=jnp.int32)
    pool = init_pool(num_rows + 1, width, optimizer)
    return write_fresh(pool, frames, values, optimizer)
