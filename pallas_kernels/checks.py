"""Checks of arguments: errors that name them.

What numbers an array holds is not known while a function is traced. `check_in_range`
and `check_distinct` look at them in the debug mode alone, by
`jax.experimental.checkify`:

    with pallas_kernels.debug_mode():
        error, out = jax.jit(checkify.checkify(train_step))(state, batch)
    error.throw()

Without it they are not even traced: a check is an effect, with which JAX dispatches
compiled functions more slowly.
"""

import contextlib

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from .reference import Arrays, Fallback, Update
from .windows import num_windows

__all__ = [
    "check_distinct",
    "check_fallback",
    "check_implementation",
    "check_in_range",
    "check_int32",
    "check_update",
    "debug_mode",
]

_checks_numbers = jax.make_user_context(False)  # functions are traced for either


def debug_mode() -> contextlib.AbstractContextManager[None]:
    """Have operations check the numbers they are given, by checkify.

    Returns:
      A context, in which functions with such operations are called through
      `checkify.checkify`.

    >>> read = jax.jit(checkify.checkify(lambda n: check_in_range("frames", n, 9)))
    >>> with debug_mode():
    ...     print(read(jnp.array([3, 9]))[0].get())
    frames must be in [0, 9), got 9 (`check` failed)
    """
    return _checks_numbers(True)


def check_fallback(
    fallback: Fallback, pool: jax.Array, shape: tuple[int, ...], chunk_dim: int
) -> None:
    """Refuse a fallback that does not fit what it stands in for."""
    if fallback is None:
        return
    if not (isinstance(fallback, tuple) and len(fallback) == 2):
        raise TypeError(
            f"fallback must be a tuple (pool, frames), got {type(fallback).__name__}"
        )
    others, frames = fallback
    check_int32("frames of fallback", frames)
    try:
        num_frames = num_windows(others, chunk_dim)
    except ValueError as error:
        raise ValueError(f"the pool of fallback does not fit: {error}") from error
    if frames.shape != shape or others.dtype != pool.dtype:
        raise ValueError(
            f"fallback must have {pool.dtype} values and frames of shape {shape}, got "
            f"{others.dtype} and {frames.shape}"
        )
    check_in_range("frames of fallback", frames, num_frames)


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


def check_in_range(name: str, numbers: jax.Array, end: int) -> None:
    """In the debug mode, refuse numbers that are not in `[0, end)`."""
    if not _checks_numbers.value:
        return
    lowest, highest = jnp.min(numbers, initial=0), jnp.max(numbers, initial=0)
    checkify.check(
        jnp.all((numbers >= 0) & (numbers < end)),
        f"{name} must be in [0, {end}), got {{number}}",
        number=jnp.where(lowest < 0, lowest, highest),
    )


def check_distinct(name: str, numbers: jax.Array, end: int) -> None:
    """In the debug mode, refuse positive numbers below `end` that come twice."""
    if not _checks_numbers.value:
        return
    ordered = jnp.sort(jnp.where((numbers > 0) & (numbers < end), numbers, 0))
    is_again = (ordered[1:] == ordered[:-1]) & (ordered[1:] > 0)
    checkify.check(
        ~jnp.any(is_again),
        f"{name} must be distinct, got {{number}} twice",
        number=jnp.max(jnp.where(is_again, ordered[1:], 0), initial=0),
    )
