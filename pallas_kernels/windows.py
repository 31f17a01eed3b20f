"""Fixed-width windows of flat and line-shaped arrays.

A *window* is `width` consecutive elements. Window `i` of a flat array starts at
element `i * width`; window `i` of an array of lines `[L, w]`, where `w` is a
multiple of `width`, lies in line `i // (w // width)`. Both are addressed without a
reshape: on TPU a reshape to a narrow last axis copies the whole array.
"""

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["exchange_windows", "gather_windows", "num_windows", "scatter_windows"]


def num_windows(array: jax.Array, width: int) -> int:
    """Return how many windows of `width` elements `array` holds.

    Args:
      array: flat `[n * width]` or lines `[L, w]` with `w` a multiple of `width`.
      width: elements per window.

    Returns:
      The number of whole windows.

    Raises:
      ValueError: if windows of `width` do not tile `array`.

    >>> num_windows(jnp.zeros((3, 128)), 16)
    24
    """
    if array.ndim not in (1, 2):
        raise ValueError(
            f"array must be flat [n * width] or lines [L, w], got shape {array.shape}"
        )
    if width < 1 or array.shape[-1] % width:
        raise ValueError(
            f"width must be positive and divide the last axis of array, "
            f"got width={width} for shape {array.shape}"
        )
    return array.size // width


def _starts(array: jax.Array, indices: jax.Array, width: int) -> jax.Array:
    """Element coordinates where each window begins: `i32[n, array.ndim]`."""
    if array.ndim == 1:
        return (indices * width)[:, None]
    per_line = array.shape[1] // width
    return jnp.stack([indices // per_line, indices % per_line * width], axis=-1)


def gather_windows(array: jax.Array, indices: jax.Array, width: int) -> jax.Array:
    """Read windows; an index out of range reads the nearest window.

    Args:
      array: flat `[n * width]` or lines `[L, w]`, any dtype.
      indices: `i32[...]` window numbers.
      width: elements per window.

    Returns:
      `[..., width]`, the dtype of `array`.

    >>> gather_windows(jnp.arange(6), jnp.array([2, 0]), 2)
    Array([[4, 5],
           [0, 1]], dtype=int32)
    """
    last = num_windows(array, width) - 1
    starts = _starts(array, jnp.clip(indices.reshape(-1), 0, last), width)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(1,),
        collapsed_slice_dims=tuple(range(array.ndim - 1)),
        start_index_map=tuple(range(array.ndim)),
    )
    sizes = (1,) * (array.ndim - 1) + (width,)
    windows = lax.gather(
        array, starts, numbers, sizes, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS
    )
    return windows.reshape(*indices.shape, width)


def scatter_windows(
    array: jax.Array, indices: jax.Array, windows: jax.Array
) -> jax.Array:
    """Overwrite windows; an index out of range, negative too, writes nothing.

    Args:
      array: flat `[n * width]` or lines `[L, w]`, any dtype.
      indices: `i32[...]` window numbers; those in range are distinct.
      windows: `[..., width]`, what is written.

    Returns:
      The updated array (in place where the caller's buffer is donated).

    >>> scatter_windows(jnp.zeros(6), jnp.array([2, -1]), jnp.ones((2, 2)))
    Array([0., 0., 0., 0., 1., 1.], dtype=float32)
    """
    width = windows.shape[-1]
    count = num_windows(array, width)
    flat = indices.reshape(-1)
    flat = jnp.where((flat >= 0) & (flat < count), flat, -1)
    # Out of range in the leading coordinate, with no product that could wrap.
    starts = jnp.where(flat[:, None] < 0, -width, _starts(array, flat, width))
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(1,),
        inserted_window_dims=tuple(range(array.ndim - 1)),
        scatter_dims_to_operand_dims=tuple(range(array.ndim)),
    )
    updates = windows.reshape(-1, width).astype(array.dtype)
    return lax.scatter(
        array, starts, updates, numbers, mode=lax.GatherScatterMode.FILL_OR_DROP
    )


def exchange_windows(
    array: jax.Array, indices: jax.Array, windows: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Overwrite windows and return what they held.

    Args:
      array: flat `[n * width]` or lines `[L, w]`.
      indices: `i32[...]` as for `scatter_windows`.
      windows: `[..., width]`, what is written.

    Returns:
      The updated array, and `[..., width]` the windows as `gather_windows` reads
      them before.

    >>> exchange_windows(jnp.arange(3), jnp.array([2]), jnp.array([[7]]))
    (Array([0, 1, 7], dtype=int32), Array([[2]], dtype=int32))
    """
    before = gather_windows(array, indices, windows.shape[-1])
    # What is written depends on what was read: XLA orders by data alone, and copies
    # the whole array where it cannot tell that a read comes before a write.
    windows = jnp.where((indices >= 0)[..., None], windows, before)
    return scatter_windows(array, indices, windows), before
