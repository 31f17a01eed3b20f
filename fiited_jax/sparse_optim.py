"""Optimizers for frames: an optax transformation, lifted over the chunk pool.

Per-frame state lives in the pool's index space. It is gathered, updated and scattered
for touched frames only, and set to `transformation.init` when a frame changes owner.
"""

import dataclasses
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

__all__ = ["SlotSpec", "SparseOptimizer", "rowwise_adagrad", "sparse"]


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

    Attributes:
      transformation: maps one frame's gradient `[C]` to its update `[C]`.
    """

    transformation: optax.GradientTransformation

    def init(self, values: jax.Array) -> Any:
        """Return fresh slots for frames that hold `values`.

        Args:
          values: `f32[n, C]`.

        Returns:
          The transformation's state, every leaf with a leading axis n.
        """
        return jax.vmap(self.transformation.init)(values)

    def update(
        self, grads: jax.Array, slots: Any, values: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Step frames along their summed gradients.

        Args:
          grads: `f32[n, C]`.
          slots: as `init` returned.
          values: `f32[n, C]`.

        Returns:
          New values `f32[n, C]` and new slots.
        """

        def one(grad: jax.Array, slot: Any, value: jax.Array) -> tuple[jax.Array, Any]:
            update, slot = self.transformation.update(grad, slot, value)
            return cast(jax.Array, optax.apply_updates(value, update)), slot

        return jax.vmap(one)(grads, slots, values)

    def slot_specs(self, chunk_dim: int) -> tuple[SlotSpec, ...]:
        """Describe the per-frame state.

        Args:
          chunk_dim: C, values per frame.

        Returns:
          One `SlotSpec` per array.

        Raises:
          ValueError: if an array of the state is neither a scalar nor `[C]`: the
            transformation is not elementwise.
        """
        frame = jax.ShapeDtypeStruct((chunk_dim,), jnp.float32)
        leaves, _ = jax.tree_util.tree_flatten_with_path(
            jax.eval_shape(self.transformation.init, frame)
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
            specs.append(SlotSpec(name, leaf.shape, str(leaf.dtype)))
        return tuple(specs)


def sparse(transformation: optax.GradientTransformation) -> SparseOptimizer:
    """Lift an elementwise optax transformation to the frames of a pool.

    Each frame steps on its own and only when it is touched, so a momentum or a weight
    decay does not run on untouched frames, a step counter (hence a schedule) counts
    the touches of its frame, and what reads norms reads those of one frame.

    Args:
      transformation: for example `optax.adagrad(0.05)` or `optax.sgd(0.1)`.

    Returns:
      A `SparseOptimizer` for `EmbeddingStore`.

    Raises:
      TypeError: if `transformation` is not an optax transformation.

    >>> sparse(optax.adagrad(0.05)).slot_specs(chunk_dim=4)[0].shape
    (4,)
    """
    if not isinstance(transformation, optax.GradientTransformation):
        raise TypeError(
            "transformation must be an optax.GradientTransformation, got "
            f"{type(transformation).__name__}"
        )
    return SparseOptimizer(transformation)


def rowwise_adagrad(
    learning_rate: float,
    *,
    initial_accumulator: float = 0.0,
    eps: float = 1e-8,
) -> SparseOptimizer:
    """Adagrad with one accumulator per frame, of the mean squared gradient.

    `accumulator += mean(g^2)`, then
    `value -= learning_rate * g / (sqrt(accumulator) + eps)`.

    Args:
      learning_rate: step size.
      initial_accumulator: start of the accumulator.
      eps: added to the root.

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
    for name, value in (
        ("learning_rate", learning_rate),
        ("initial_accumulator", initial_accumulator),
        ("eps", eps),
    ):
        if not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {value}")

    def init(params: jax.Array) -> _RowwiseAdagradState:
        del params
        return _RowwiseAdagradState(jnp.float32(initial_accumulator))

    def update(
        updates: jax.Array, state: _RowwiseAdagradState, params: Any = None
    ) -> tuple[jax.Array, _RowwiseAdagradState]:
        del params
        total = state.sum_of_mean_squares + jnp.mean(jnp.square(updates))
        scaled = -learning_rate * updates / (jnp.sqrt(total) + eps)
        scaled = jnp.where(total > 0, scaled, 0.0)  # 0 / 0 with eps = 0
        return scaled, _RowwiseAdagradState(total)

    return sparse(optax.GradientTransformation(init, update))  # pyright: ignore[reportArgumentType]


class _RowwiseAdagradState(NamedTuple):
    sum_of_mean_squares: jax.Array  # f32[]
