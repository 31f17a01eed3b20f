"""Sizes: reading them, and what frames take."""

import re
from decimal import Decimal
from typing import NamedTuple

from .sparse_optim import SlotSpec

__all__ = [
    "LANES",
    "SHORT_FRAMES",
    "FrameKind",
    "num_scalars",
    "parse_bytes",
    "pool_line_shape",
]

SHORT_FRAMES = 1 << 16
"""As many frames have numbers of 16 bits; of more, each entry has two bytes more."""

LANES = 128  # the lane count of a TPU register, and of every line we store


def pool_line_shape(
    num_frames: int, chunk_dim: int, line_group: int = 1
) -> tuple[int, int]:
    """Return the shape of the lines that hold `num_frames` chunks.

    A line is 128 lanes where whole chunks fill it, so that no backend pads or
    relayouts it; else it is one chunk.

    Args:
      num_frames: P, chunks to hold.
      chunk_dim: C, values per chunk.
      line_group: what the number of lines is a multiple of.

    Returns:
      `(lines, lanes)`.

    >>> pool_line_shape(100, 16), pool_line_shape(100, 24)
    ((13, 128), (100, 24))
    """
    lanes = chunk_dim if LANES % chunk_dim else LANES
    values = lanes * line_group
    return -(-num_frames * chunk_dim // values) * line_group, lanes


def num_scalars(num_frames: int) -> int:
    """Return how many scalars are stored for frames, one each: whole lines of them.

    >>> num_scalars(100)
    128
    """
    return -(-num_frames // LANES) * LANES


def parse_bytes(size: int | str) -> int:
    """Read a size in bytes.

    Args:
      size: an integer, or a number with an optional unit B, kB, MB, GB, TB, KiB,
        MiB, GiB or TiB.

    Returns:
      The bytes, rounded down.

    Raises:
      ValueError: if it is not a positive size.

    >>> parse_bytes("64MiB"), parse_bytes("1.5 kB"), parse_bytes(10)
    (67108864, 1500, 10)
    """
    exponents = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b?\s*", str(size), re.I)
    if match and not isinstance(size, bool):
        number, unit, binary = match.groups()
        base = 1024 if binary else 1000
        num_bytes = int(Decimal(number) * base ** exponents[unit.lower()])
        if 0 < num_bytes < 1 << 63 and (unit or not binary):
            return num_bytes
    raise ValueError(
        f"a size must be a positive number of bytes such as 1048576, '64MiB' or "
        f"'1.5GB', got {size!r}"
    )


class FrameKind(NamedTuple):
    """What a frame holds.

    Attributes:
      chunk_dim: C, values per frame.
      value_bytes: bytes per value.
      specs: the optimizer's slots.
      line_group: as for `pool_line_shape`.
    """

    chunk_dim: int
    value_bytes: int
    specs: tuple[SlotSpec, ...]
    line_group: int = 1

    def bytes_of(self, num_frames: int) -> int:
        """Bytes of everything that is per frame: values and slots."""
        lines, lanes = pool_line_shape(num_frames, self.chunk_dim, self.line_group)
        total = lines * lanes * self.value_bytes
        for spec in self.specs:
            per_frame = lines * lanes // self.chunk_dim
            scale = per_frame if spec.shape else num_scalars(num_frames)
            total += scale * spec.num_bytes
        return total

    def most_within(self, num_bytes: int) -> int:
        """The most frames whose arrays fit `num_bytes`, at least 2."""
        low, high = 2, num_bytes // (self.chunk_dim * self.value_bytes) + 1
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.bytes_of(middle) <= num_bytes
            low, high = (middle, high) if fits else (low, middle)
        return low
