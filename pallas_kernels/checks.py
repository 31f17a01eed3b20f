"""Checks of arguments: errors that name them."""

import jax
import jax.numpy as jnp

from .reference import Arrays, Fallback, Update
from .windows import num_windows

__all__ = ["check_fallback", "check_implementation", "check_int32", "check_update"]


def check_fallback(
    fallback: Fallback, pool: jax.Array, shape: tuple[int, ...], chunk_dim: int
) -> None:
    """Refuse a fallback that does not fit what it stands in for."""
    if fallback is None:
        return
    others, frames = fallback
    check_int32("frames of fallback", frames)
    num_windows(others, chunk_dim)
    if frames.shape != shape or others.dtype != pool.dtype:
        raise ValueError(
            f"fallback must have {pool.dtype} values and frames of shape {shape}, got "
            f"{others.dtype} and {frames.shape}"
        )


def check_update(
    update: Update,
    arrays: Arrays,
    widths: tuple[int, ...],
    operands: Arrays,
    num_rows: int,
) -> None:
    """Refuse an update that does not return what it was given, of other values."""
    windows = tuple(
        jax.ShapeDtypeStruct((num_rows, width), array.dtype)
        for array, width in zip(arrays, widths, strict=True)
    )
    given = tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in operands)
    returned, accepts = jax.eval_shape(update, windows, given)
    shapes = [window.shape for window in returned]
    if shapes != [window.shape for window in windows]:
        raise ValueError(
            f"update must return windows {[window.shape for window in windows]}, "
            f"returned {shapes}"
        )
    if (accepts.shape, accepts.dtype) != ((num_rows, 1), jnp.bool_):
        raise ValueError(
            f"update must return accepts bool[{num_rows}, 1], returned "
            f"{accepts.dtype}{list(accepts.shape)}"
        )


def check_implementation(implementation: str | None, *more: str) -> None:
    """Refuse a name that is none of an operation's, which has `"xla"` and `more`."""
    allowed = ("xla", *more)
    if implementation not in (None, *allowed):
        raise NotImplementedError(
            f"implementation={implementation!r} is not available; allowed are None, "
            f"{', '.join(map(repr, allowed))}"
        )


def check_int32(name: str, array: jax.Array) -> None:
    """Refuse numbers of another dtype."""
    if array.dtype != jnp.int32:
        raise TypeError(f"{name} must be int32, got {array.dtype}")
