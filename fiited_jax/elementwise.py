"""Does an optax transformation treat every value by itself? Tried, not read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = ["is_elementwise", "try_steps"]

# Sizes of the gradients of the steps that are tried: what clips or normalizes acts on
# some of them.
_SCALES = (1.0, 1e3, 1e-3, 1e8, 1.0, 1.0)
_NUM_PAIRS = 4
# Of an update. Rounding stays far below it, what couples values goes far above.
_TOLERANCE = 1e-4


def try_steps(
    made_with: optax.GradientTransformation, stepped_with: optax.GradientTransformation
) -> np.ndarray:
    """Step pairs of values that hold one value in two places, with two partners.

    Runs eagerly, on concrete numbers even while a caller is traced.

    Args:
      made_with: whose `init` makes the state.
      stepped_with: whose `update` is tried.

    Returns:
      `f32[steps, 2, pairs]` updates of the value in the first place and in the second.

    Raises:
      ValueError: if a step fails, or changes the shapes or dtypes of the state.
    """
    rng = np.random.default_rng(0)
    shape = (1 + len(_SCALES), _NUM_PAIRS)
    value, partner, other = (rng.normal(size=shape).astype("f") for _ in range(3))
    pairs = np.concatenate(
        [np.stack([value, partner], -1), np.stack([10 * other, value], -1)], axis=1
    )
    pairs[1:] *= np.reshape(_SCALES, (-1, 1, 1))
    updates = []
    # A number that overflows is no error here.
    with jax.ensure_compile_time_eval(), jax.debug_nans(False), jax.debug_infs(False):
        values, update = jnp.asarray(pairs[0]), jax.vmap(stepped_with.update)
        slots = jax.vmap(made_with.init)(values)
        kinds = _kinds(slots)
        for grads in pairs[1:]:
            try:
                one, slots = update(jnp.asarray(grads), slots, values)
            except Exception as error:
                raise ValueError(
                    "transformation must be elementwise and need nothing but gradient, "
                    f"state and values; a step of two values failed: {error}"
                ) from error
            if _kinds(slots) != kinds:
                raise ValueError(
                    "transformation must keep the shapes and dtypes of its state, "
                    f"{kinds}; a step made {_kinds(slots)}"
                )
            values = optax.apply_updates(values, one)
            updates.append(np.asarray(one))
    halves = np.split(np.stack(updates), 2, axis=1)
    return np.stack([halves[0][..., 0], halves[1][..., 1]], axis=1)


def is_elementwise(updates: np.ndarray) -> bool:
    """Whether neither the partner nor the place of a value has mattered.

    Args:
      updates: from `try_steps`.

    Returns:
      True if both updates of each value agree at every step.

    >>> [is_elementwise(try_steps(tx, tx)) for tx in (optax.sgd(0.1), optax.lars(0.1))]
    [True, False]
    """
    first, second = updates[:, 0], updates[:, 1]
    return np.allclose(first, second, rtol=_TOLERANCE, atol=0, equal_nan=True)


def _kinds(slots: object) -> list[str]:
    return [
        f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape[1:]}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(slots)
    ]
