"""Lines of 16-bit values: two lie side by side in memory, as lines of 32 bits.

Mosaic copies them by twos, and a copy of two seen as 32 bits has the first in the lower
halves.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..lines import LANES

__all__ = [
    "HALF",
    "as_32_bits",
    "bits_of_window",
    "half_shift",
    "lines_at",
    "lines_per_copy",
    "own_lanes",
    "window_of_bits",
]

HALF = np.uint32(0xFFFF)


def lines_per_copy(dtype: Any) -> int:
    """Return how many lines are copied together."""
    return 4 // jnp.dtype(dtype).itemsize


def as_32_bits(dtype: Any) -> Any:
    """Return the dtype in which lines are worked on."""
    return jnp.uint32 if jnp.dtype(dtype).itemsize == 2 else dtype


def lines_at(number: Any, dtype: Any) -> Any:
    """Return the slice of lines that are copied together."""
    size = lines_per_copy(dtype)
    return pl.ds(pl.multiple_of(number * size, size), size)


def window_of_bits(bits: jax.Array, dtype: Any) -> jax.Array:
    """Return the values of a dtype that `as_32_bits` of it hold, 16 bits in halves."""
    if dtype == jnp.bfloat16:
        # The upper half of a float32, so that there is no arithmetic in 16 bits.
        return lax.bitcast_convert_type(bits << 16, jnp.float32).astype(dtype)
    return bits.astype(dtype)


def bits_of_window(window: jax.Array) -> jax.Array:
    """Return values as `window_of_bits` takes them."""
    if window.dtype == jnp.bfloat16:
        wide = lax.bitcast_convert_type(window.astype(jnp.float32), jnp.uint32)
        return wide >> 16
    return window.astype(as_32_bits(window.dtype))


def half_shift(frame: Any, width: int) -> jax.Array:
    """Return by how many bits the values of a frame are shifted, `u32[]`."""
    line = frame // (LANES // width)
    return (line % 2 * 16).astype(jnp.uint32)


def own_lanes(line: jax.Array, frame: Any, width: int, *, is_short: bool) -> jax.Array:
    """Bring the values of a frame to the first lanes.

    Args:
      line: `[1, 128]` of 32 bits: the line it is in, or two of 16 bits.
      frame: `i32[]`.
      width: values per frame.
      is_short: whether values have 16 bits.

    Returns:
      `[1, 128]`, those of 16 bits in the lower halves.
    """
    if is_short:
        line = (line >> half_shift(frame, width)) & HALF
    first = frame % (LANES // width) * width
    return pltpu.roll(line, (LANES - first) % LANES, 1)
