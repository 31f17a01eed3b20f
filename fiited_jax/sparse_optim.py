"""Optimizers for frames: an optax transformation, lifted over the chunk pool.

Per-frame state lives in the pool's index space. It is gathered, updated and scattered
for touched frames only, and set to `transformation.init` when a frame changes owner.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .elementwise import is_elementwise, try_steps

__all__ = ["SlotSpec", "SparseOptimizer", "rowwise_adagrad", "sparse"]

Factory: TypeAlias = Callable[..., optax.GradientTransformation]
LearningRate: TypeAlias = float | optax.Schedule


class SlotSpec(NamedTuple):
    """One array of per-frame optimizer state.

    Attributes:
      path: where it sits in the transformation's state.
      shape: per frame, `()` or `(C,)`.
      dtype: its dtype's name.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes per frame."""
        return jnp.dtype(self.dtype).itemsize * (self.shape[0] if self.shape else 1)


@dataclasses.dataclass(frozen=True)
class SparseOptimizer:
    """An optimizer whose state is per frame; static and hashable. Made by `sparse`.

    Two made from equal arguments are equal, so that what is jitted for one serves the
    other. A transformation equals itself alone: give a factory where that matters.

    Attributes:
      source: maps one frame's gradient `[C]` to its update `[C]`; or a factory of that,
        called with `learning_rate` and `arguments`.
      learning_rate: of a factory; a schedule is called with the store's step.
      arguments: of a factory, by name.
      table_scale: per table, what its updates are multiplied by; `None` is 1 for all.
      couples_values: whether the values of one frame may act on each other.
    """

    source: optax.GradientTransformation | Factory
    learning_rate: LearningRate | None = None
    arguments: tuple[tuple[str, Hashable], ...] = ()
    table_scale: tuple[float, ...] | None = None
    couples_values: bool = False

    def init(self, values: jax.Array) -> Any:
        """Return fresh slots for frames that hold `values`.

        Args:
          values: `f32[n, C]`.

        Returns:
          The transformation's state, every leaf with a leading axis n.
        """
        return jax.vmap(self._transformation(1.0).init)(values)

    def update(
        self,
        grads: jax.Array,
        slots: Any,
        values: jax.Array,
        *,
        learning_rate: jax.Array | None = None,
        scale: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Step frames along their summed gradients.

        Args:
          grads: `f32[n, C]`.
          slots: as `init` returned.
          values: `f32[n, C]`.
          learning_rate: `f32[]` from `learning_rate_at`; a schedule needs it.
          scale: `f32[n]` from `scale_of`; a `table_scale` needs it.

        Returns:
          New values `f32[n, C]` and new slots.

        Raises:
          ValueError: if `learning_rate` or `scale` is missing where it is needed.
        """
        if callable(self.learning_rate) and learning_rate is None:
            raise ValueError(
                "learning_rate must be given, from learning_rate_at, with a schedule"
            )
        if self.table_scale is not None and scale is None:
            raise ValueError("scale must be given, from scale_of, with a table_scale")
        transformation = self._transformation(
            self.learning_rate if learning_rate is None else learning_rate
        )

        def one(
            grad: jax.Array, slot: Any, value: jax.Array, scale: jax.Array | None
        ) -> tuple[jax.Array, Any]:
            update, slot = transformation.update(grad, slot, value)
            if scale is not None:
                update = cast(jax.Array, update) * scale
            return cast(jax.Array, optax.apply_updates(value, update)), slot

        return jax.vmap(one)(grads, slots, values, scale)

    def learning_rate_at(self, step: jax.Array | int | None) -> jax.Array | None:
        """Return the learning rate of an update, by a schedule.

        Args:
          step: `i32[]` updates before this one.

        Returns:
          `f32[]`, or `None` for a learning rate that is a number.

        Raises:
          ValueError: on a schedule without a step, or that does not return a scalar.
        """
        if not callable(self.learning_rate):
            return None
        if step is None:
            raise ValueError(
                "step must be given: the learning rate is a schedule by the store's "
                "step"
            )
        rate = jnp.asarray(self.learning_rate(step), jnp.float32)
        if rate.shape:
            raise ValueError(
                f"learning_rate must return a scalar, got the shape {rate.shape}"
            )
        return rate

    def scale_of(self, tables: jax.Array) -> jax.Array | None:
        """Return the factors of frames, from the tables that own them.

        Args:
          tables: `i32[...]`; of one out of range the factor is any.

        Returns:
          `f32[...]`, or `None` without a `table_scale`.
        """
        if self.table_scale is None:
            return None
        factors = jnp.asarray(self.table_scale, jnp.float32)
        return factors.at[tables].get(mode="clip")

    def check_num_tables(self, num_tables: int) -> None:
        """Check that `table_scale` has a factor for each table.

        Args:
          num_tables: tables of the store.

        Raises:
          ValueError: if it has more or less.
        """
        if self.table_scale is not None and len(self.table_scale) != num_tables:
            raise ValueError(
                f"table_scale must have one factor for each of {num_tables} tables, "
                f"got {len(self.table_scale)}"
            )

    def slot_specs(self, chunk_dim: int) -> tuple[SlotSpec, ...]:
        """Describe the per-frame state.

        Args:
          chunk_dim: C, values per frame.

        Returns:
          One `SlotSpec` per array.

        Raises:
          ValueError: if the transformation is not elementwise: its state holds an
            array that is neither a scalar nor `[C]`, or one value of a frame acts on
            another, which is tried once per optimizer.
        """
        frame = jax.ShapeDtypeStruct((chunk_dim,), jnp.float32)
        leaves, _ = jax.tree_util.tree_flatten_with_path(
            jax.eval_shape(self._transformation(1.0).init, frame)
        )
        specs = []
        for path, leaf in leaves:
            name = jax.tree_util.keystr(path)
            if leaf.shape not in ((), (chunk_dim,)):
                raise ValueError(
                    f"optimizer state {name} of a frame must have shape () or "
                    f"({chunk_dim},), got {leaf.shape}: only elementwise "
                    "transformations can be lifted"
                )
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                raise ValueError(
                    f"optimizer state {name} of a frame must be numbers, got a random "
                    "key: only elementwise transformations can be lifted"
                )
            specs.append(SlotSpec(name, leaf.shape, str(leaf.dtype)))
        if callable(self.learning_rate):
            jax.eval_shape(self.learning_rate_at, jax.ShapeDtypeStruct((), jnp.int32))
        _check_elementwise(self)
        return tuple(specs)

    def _transformation(self, rate: Any) -> optax.GradientTransformation:
        if isinstance(self.source, optax.GradientTransformation):
            return self.source
        made = self.source(learning_rate=rate, **dict(self.arguments))
        if not isinstance(made, optax.GradientTransformation):
            raise TypeError(
                "the factory must return an optax.GradientTransformation, got "
                f"{type(made).__name__}"
            )
        return made


def sparse(
    transformation: optax.GradientTransformation | Factory,
    /,
    *,
    learning_rate: LearningRate | None = None,
    table_scale: Sequence[float] | None = None,
    **arguments: Any,
) -> SparseOptimizer:
    """Lift an elementwise optax transformation to the frames of a pool.

    Each frame steps on its own and only when it is touched: no momentum and no weight
    decay runs on untouched frames, and a counter of the transformation, hence a
    schedule inside it, counts the touches of its frame. For a learning rate that
    follows the step of the whole store, give a factory and the schedule apart.

    What acts on all gradients at once is done before `apply_gradients`: for clipping
    by global norm see `fj.clip_vector_grads`.

    Args:
      transformation: for example `optax.adagrad(0.05)`; or a factory that takes
        `learning_rate`, for example `optax.adam`.
      learning_rate: for a factory; a number, or a schedule that is called with the
        number of updates that the store has made.
      table_scale: one factor per table that multiplies its learning rate; 0 freezes
        its values. The updates are scaled, not the gradients.
      **arguments: others of the factory; hashable.

    Returns:
      A `SparseOptimizer` for `EmbeddingStore`, which refuses a transformation that is
      not elementwise.

    Raises:
      TypeError: if `transformation` is neither, or an argument is of a wrong type.
      ValueError: on a learning rate or factor that is not finite or is negative.

    >>> sparse(optax.adagrad(0.05)).slot_specs(chunk_dim=4)[0].shape
    (4,)
    >>> schedule = optax.cosine_decay_schedule(0.1, decay_steps=1000)
    >>> sparse(optax.adam, learning_rate=schedule, b1=0.8) == sparse(
    ...     optax.adam, b1=0.8, learning_rate=schedule)
    True
    """
    scales = None if table_scale is None else _check_scales(table_scale)
    if isinstance(transformation, optax.GradientTransformation):
        given = [*arguments] + ["learning_rate"] * (learning_rate is not None)
        if given:
            raise TypeError(
                f"{', '.join(given)} must go with a factory such as optax.adam; "
                "transformation is made already"
            )
        return SparseOptimizer(transformation, table_scale=scales)
    if not callable(transformation):
        raise TypeError(
            "transformation must be an optax.GradientTransformation or a factory of "
            f"one, got {type(transformation).__name__}"
        )
    if learning_rate is None:
        raise TypeError("learning_rate must be given with a factory, got None")
    for name, value in arguments.items():
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"{name} must be hashable, such as a Python number, got {value!r}"
            ) from None
    optimizer = SparseOptimizer(
        transformation,
        learning_rate=_check_rate(learning_rate),
        arguments=tuple(sorted(arguments.items())),
        table_scale=scales,
    )
    optimizer._transformation(1.0)  # arguments that the factory lacks fail here
    return optimizer


def rowwise_adagrad(
    learning_rate: LearningRate,
    *,
    initial_accumulator: float = 0.0,
    eps: float = 1e-8,
    table_scale: Sequence[float] | None = None,
) -> SparseOptimizer:
    """Adagrad with one accumulator per frame, of the mean squared gradient.

    `accumulator += mean(g^2)`, then
    `value -= learning_rate * g / (sqrt(accumulator) + eps)`.

    Args:
      learning_rate: step size, or a schedule as for `sparse`.
      initial_accumulator: start of the accumulator.
      eps: added to the root.
      table_scale: as for `sparse`.

    Returns:
      A `SparseOptimizer` with 4 bytes of state per frame.

    Raises:
      ValueError, TypeError: on an argument that is not a number of at least 0.

    References:
      Gupta et al., "Training recommender systems at scale: communication-efficient
      model and data parallelism", KDD 2021, and FBGEMM's `rowwise_adagrad`.
      Deviation: the row is a chunk here, so it is theirs only for
      `chunk_dim == embedding_dim`.
    """
    start = _check_number("initial_accumulator", initial_accumulator)
    return SparseOptimizer(
        _rowwise_adagrad,
        learning_rate=_check_rate(learning_rate),
        arguments=(("eps", _check_number("eps", eps)), ("initial_accumulator", start)),
        table_scale=None if table_scale is None else _check_scales(table_scale),
        couples_values=True,
    )


def _check_number(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
    return float(value)


def _check_rate(rate: Any) -> LearningRate:
    if callable(rate):
        return cast(optax.Schedule, rate)
    return _check_number("learning_rate", rate)


def _check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    if isinstance(scales, str) or not isinstance(scales, Sequence) or not scales:
        raise TypeError(
            f"table_scale must be a sequence of one number per table, got {scales!r}"
        )
    return tuple(
        _check_number(f"table_scale[{table}]", scale)
        for table, scale in enumerate(scales)
    )


class _RowwiseAdagradState(NamedTuple):
    sum_of_mean_squares: jax.Array  # f32[]


def _rowwise_adagrad(
    learning_rate: Any, initial_accumulator: float, eps: float
) -> optax.GradientTransformation:
    def init(params: Any) -> _RowwiseAdagradState:
        del params
        return _RowwiseAdagradState(jnp.float32(initial_accumulator))

    def update(
        updates: Any, state: Any, params: Any = None
    ) -> tuple[jax.Array, _RowwiseAdagradState]:
        del params
        total = state.sum_of_mean_squares + jnp.mean(jnp.square(updates))
        scaled = -learning_rate * updates / (jnp.sqrt(total) + eps)
        scaled = jnp.where(total > 0, scaled, 0.0)  # 0 / 0 with eps = 0
        return scaled, _RowwiseAdagradState(total)

    return optax.GradientTransformation(init, update)


@functools.lru_cache
def _check_elementwise(optimizer: SparseOptimizer) -> None:
    """Try the transformation, once per optimizer."""
    full = optimizer._transformation(1.0)
    updates = try_steps(full, full)
    if not (optimizer.couples_values or is_elementwise(updates)):
        raise ValueError(
            "transformation must be elementwise: the update of a value depends on the "
            "other values of its frame or on its place, as with norms, factored "
            "moments or noise. To clip by global norm see fj.clip_vector_grads; "
            "fj.rowwise_adagrad is the one exception"
        )
    if callable(optimizer.learning_rate):
        slower = try_steps(full, optimizer._transformation(0.5))
        if np.array_equal(updates, slower, equal_nan=True):
            raise ValueError(
                "learning_rate must reach the updates: this factory ignores it, or "
                "keeps the one that its state was made with"
            )
