"""What acts on the gradients of a batch as a whole, before `apply_gradients`.

A vector that several lookups read has several gradients, and a dense table would hold
their sum: norms are taken of the sums here.

To accumulate over micro-batches, admit the ids of all of them at once, `[A, B]`. The
vectors of each are gathered with its part of the handle, `jax.tree.map(lambda leaf:
leaf[i], handle)`, the gradients are stacked, `[A, B, D]`, divided by A if the losses
are means, and applied once with the whole handle. That is one step of the optimizer,
equal to that of one large batch. Of micro-batches that are admitted one by one, the
handles can be concatenated, leaf by leaf; what a later one has evicted is `stale`.
"""

import numbers

import jax
import jax.numpy as jnp

from .bidding import find_leaders
from .handle import Handle
from .key_rows import sum_duplicates
from .state import NO_ENTRY

__all__ = ["clip_vector_grads", "vector_grad_norm"]


def vector_grad_norm(handle: Handle, vector_grads: jax.Array) -> jax.Array:
    """Return the norm of the gradient with respect to the vectors that were read.

    Chunks without a frame count. Lookups without an entry do not, nor do values whose
    square is not finite. With `fallback="shared"` it is the norm as if every key had
    its vector to itself, and what lookups without an entry teach the shared ones is
    not in it.

    Args:
      handle: from `admit` or `find`.
      vector_grads: `[..., D]`, for `apply_gradients`.

    Returns:
      `f32[]`, the global norm of the gradient of a dense table.

    Raises:
      ValueError: if the two are of different shapes.

    >>> import fiited_jax as fj
    >>> store = fj.EmbeddingStore(
    ...     fj.EmbeddingConfig(embedding_dim=1, chunk_dim=1, num_entries=32,
    ...                        num_frames=9), fj.rowwise_adagrad(0.1))
    >>> state = store.init(jax.random.key(0))
    >>> _, handle, _ = store.admit(state, jnp.array([7, 7, 5]))
    >>> float(vector_grad_norm(handle, jnp.array([[1.0], [2.0], [4.0]])))
    5.0
    """
    if vector_grads.shape[:-1] != handle.mask.shape:
        raise ValueError(
            f"vector_grads must have the shape {handle.mask.shape} of the lookups and "
            f"an axis of values; got {vector_grads.shape}"
        )
    entries = handle.entries.reshape(-1)
    leaders = find_leaders(entries, entries != NO_ENTRY)
    shape = (entries.size, vector_grads.shape[-1])
    grads = jnp.reshape(vector_grads.astype(jnp.float32), shape)
    squares = jnp.square(sum_duplicates(leaders, grads))
    return jnp.sqrt(jnp.sum(jnp.where(jnp.isfinite(squares), squares, 0.0)))


def clip_vector_grads(
    handle: Handle, vector_grads: jax.Array, max_norm: float | jax.Array
) -> jax.Array:
    """Scale gradients down so that their `vector_grad_norm` is at most `max_norm`.

    `optax.clip_by_global_norm` works on `vector_grads` too, alone or in a tuple with
    the gradients of the dense weights, but takes each lookup of a vector for a
    parameter of its own. To clip dense weights and vectors by one norm, use
    `vector_grad_norm`.

    Args:
      handle: from `admit` or `find`.
      vector_grads: `[..., D]`, for `apply_gradients`.
      max_norm: positive.

    Returns:
      Gradients of the same shape and dtype.

    Raises:
      ValueError: if the two are of different shapes, or `max_norm` is not positive.

    >>> import fiited_jax as fj
    >>> store = fj.EmbeddingStore(
    ...     fj.EmbeddingConfig(embedding_dim=1, chunk_dim=1, num_entries=32,
    ...                        num_frames=9), fj.rowwise_adagrad(0.1))
    >>> state = store.init(jax.random.key(0))
    >>> _, handle, _ = store.admit(state, jnp.array([7, 7, 5]))
    >>> clip_vector_grads(handle, jnp.array([[1.0], [2.0], [4.0]]), 2.5).tolist()
    [[0.5], [1.0], [2.0]]
    """
    if isinstance(max_norm, numbers.Real) and not float(max_norm) > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    norm = vector_grad_norm(handle, vector_grads)
    factor = max_norm / jnp.maximum(norm, max_norm)
    return (vector_grads * factor).astype(vector_grads.dtype)
