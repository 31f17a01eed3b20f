"""The jitted functions of training: train step, prune step, evaluation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ..data import Batch
from ..methods import Method
from ..models import DLRM

__all__ = [
    "DeviceBatch",
    "StepInfo",
    "device_batch",
    "evaluate_step",
    "prune_step",
    "train_step",
]


class DeviceBatch(NamedTuple):
    """A batch of a fixed size, as the jitted functions take it.

    Attributes:
      labels: `f32[B]`.
      dense: `f32[B, num_dense]`.
      ids: `[B, F]` as the method's embedding module takes them.
      weights: `f32[B]`, 0 for examples that only fill the batch up.
    """

    labels: Any
    dense: Any
    ids: Any
    weights: Any


class StepInfo(NamedTuple):
    """What a train step tells.

    Attributes:
      loss: `f32[]` mean over the batch.
      probabilities: `f32[B]` predicted before the update.
      admitted: counters of the admission by name, `None` where a method has none.
      applied: counters of the sparse update.
      dense_skipped: `i32[]`, 1 if the gradients of the dense weights were not finite
        and their update was skipped.
    """

    loss: jax.Array
    probabilities: jax.Array
    admitted: dict[str, jax.Array] | None
    applied: Any
    dense_skipped: jax.Array


def device_batch(batch: Batch, batch_size: int, method: Method) -> DeviceBatch:
    """Fill a batch up to its full size and encode its ids; on the host."""
    missing = batch_size - len(batch.labels)
    labels, dense, ids = (
        np.pad(
            array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), constant_values=fill
        )
        for array, fill in zip(batch, (0, 0, -1), strict=True)
    )
    weights = np.ones(batch_size, np.float32)
    weights[batch_size - missing :] = 0
    return DeviceBatch(labels, dense, method.encode(ids), weights)


def _tables(batch: DeviceBatch) -> jax.Array:
    return jnp.arange(jax.tree.leaves(batch.ids)[0].shape[1], dtype=jnp.int32)


def train_step(model: DLRM, optimizer: nnx.Optimizer, batch: DeviceBatch) -> StepInfo:
    """Admit, gather, differentiate, update dense weights and embeddings.

    Args:
      model: its `embed` is an embedding module as `methods.Embed`.
      optimizer: of the dense weights; its transformation is `optax.apply_if_finite`.
      batch: from `device_batch`.

    Returns:
      A `StepInfo`.
    """
    embed: Any = model.embed
    handle, admitted = embed.admit(batch.ids, tables=_tables(batch))
    vectors = embed.gather(handle)

    def loss_fn(model: DLRM, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.logits(batch.dense, vectors)
        losses = optax.sigmoid_binary_cross_entropy(logits, batch.labels)
        return jnp.sum(losses * batch.weights) / jnp.sum(batch.weights), logits

    differentiated = (nnx.DiffState(0, nnx.Param), 1)
    (loss, logits), (grads, vector_grads) = nnx.value_and_grad(
        loss_fn, argnums=differentiated, has_aux=True
    )(model, vectors)
    optimizer.update(model, grads)
    skipped = 1 - optimizer.opt_state.last_finite.astype(jnp.int32)
    applied = embed.apply_gradients(handle, vector_grads)
    probabilities = nnx.sigmoid(logits)
    return StepInfo(loss, probabilities, _counters(admitted), applied, skipped)


def _counters(info: Any) -> dict[str, jax.Array] | None:
    """Keep the scalars: lists of evicted keys would add up until the next log line."""
    if info is None:
        return None
    return {
        name: value
        for name, value in info._asdict().items()
        if isinstance(value, jax.Array) and value.ndim == 0
    }


def prune_step(embed: Any) -> Any:
    """Prune between updates."""
    return embed.prune_step()


def evaluate_step(model: DLRM, batch: DeviceBatch) -> jax.Array:
    """Return the click probabilities, `f32[B]`; writes nothing."""
    return nnx.sigmoid(model(batch.dense, batch.ids, tables=_tables(batch)))
