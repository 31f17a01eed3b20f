"""Lines of 128 values: the least that a TPU copies from its memory."""

from collections.abc import Sequence
from typing import Any

import jax

__all__ = ["LANES", "check_lines"]

LANES = 128


def check_lines(
    implementation: str,
    name: str,
    array: jax.Array,
    *,
    flat: bool = False,
    short: Sequence[Any] = (),
) -> None:
    """Refuse what does not lie in whole lines of 32-bit values.

    Args:
      implementation: that needs them.
      name: of the array.
      array: any.
      flat: whether lines may follow each other in one axis.
      short: dtypes of 16 bits of which an even number of lines will do.

    Raises:
      NotImplementedError: naming all three.
    """
    needs = f"implementation={implementation!r} needs {name}"
    are_lines = array.ndim == 2 and array.shape[1] == LANES
    if not (are_lines or (flat and array.ndim == 1 and array.size % LANES == 0)):
        raise NotImplementedError(
            f"{needs} of lines of {LANES} values, got shape {array.shape}"
        )
    if are_lines and array.dtype in short:
        if array.shape[0] % 2:
            raise NotImplementedError(
                f"{needs} of an even number of lines of 16-bit values, got shape "
                f"{array.shape}"
            )
    elif array.dtype.itemsize != 4:
        raise NotImplementedError(
            f"{needs} of 32-bit values: shorter ones share a row of memory; got "
            f"{array.dtype} of shape {array.shape}"
        )
    if array.size >= 1 << 31:
        raise NotImplementedError(
            f"{needs} of fewer than 2^31 values, got shape {array.shape}"
        )
