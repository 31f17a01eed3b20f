"""Sizes: reading them, what frames take, and how to fill a budget."""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from .sparse_optim import SlotSpec

__all__ = [
    "LANES",
    "SHORT_FRAMES",
    "FrameKind",
    "default_frames_per_entry",
    "fit_sizes",
    "parse_bytes",
    "pool_line_shape",
]

SHORT_FRAMES = 1 << 16
"""As many frames have numbers of 16 bits; of more, each entry has two bytes more."""

LANES = 128  # the lane count of a TPU register, and of every line we store
# A page table this much larger than its keys evicts few of them.
_ENTRIES_PER_ID = 1.1
_MOST_PER_NEED = 4


def pool_line_shape(num_frames: int, chunk_dim: int) -> tuple[int, int]:
    """Return the shape of the lines that hold `num_frames` chunks.

    A line is 128 lanes where whole chunks fill it, so that no backend pads or
    relayouts it; else it is one chunk.

    Args:
      num_frames: P, chunks to hold.
      chunk_dim: C, values per chunk.

    Returns:
      `(lines, lanes)`.

    >>> pool_line_shape(100, 16), pool_line_shape(100, 24)
    ((13, 128), (100, 24))
    """
    lanes = chunk_dim if LANES % chunk_dim else LANES
    return -(-num_frames * chunk_dim // lanes), lanes


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
    """

    chunk_dim: int
    value_bytes: int
    specs: tuple[SlotSpec, ...]

    def bytes_of(self, num_frames: int) -> int:
        """Bytes of everything that is per frame: values and slots."""
        lines, lanes = pool_line_shape(num_frames, self.chunk_dim)
        total = lines * lanes * self.value_bytes
        for spec in self.specs:
            scale = lines * lanes // self.chunk_dim if spec.shape else num_frames
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


def default_frames_per_entry(ranking: str, num_chunks: int) -> float:
    """Return the mean frames per tracked key where none is given.

    Ranked by length, many short vectors are worth more than fewer long ones.

    Args:
      ranking: as for `EmbeddingConfig`.
      num_chunks: K of the widest table.
    """
    return max(num_chunks / 2, 1) if ranking == "chunks" else 1.0


def fit_sizes(
    num_bytes: int,
    kind: FrameKind,
    *,
    num_ways: int,
    entry_bytes: Callable[[int], int],
    frames_per_entry: float,
    most_chunks: float,
    most_entries: int,
    num_ids: int | None,
) -> tuple[int, int]:
    """Divide bytes between a page table and a pool.

    Args:
      num_bytes: what both may take.
      kind: of the frames.
      num_ways: W, entries per bucket.
      entry_bytes: bytes per entry, given the number of frames.
      frames_per_entry: mean frames per tracked key.
      most_chunks: frames that an entry can use, what is left free for new ones counted.
      most_entries: entries that there may be.
      num_ids: keys that there can be, `None` if that is not known.

    Returns:
      How many entries and frames. At least a bucket and two frames: what is too small
      for them is for the caller to refuse.
    """
    frame_bytes = kind.bytes_of(LANES) / LANES
    needed = None
    if num_ids is not None:
        needed = math.ceil(_ENTRIES_PER_ID * num_ids / num_ways)

    def divided(bucket_bytes: int, most_frames: int | None) -> tuple[int, int]:
        mean_bucket = bucket_bytes + num_ways * frames_per_entry * frame_bytes
        possible = (num_bytes - kind.bytes_of(2)) // bucket_bytes
        possible = min(possible, max(most_entries // num_ways, 1))
        num_buckets = min(max(int(num_bytes / mean_bucket), 1), possible)
        if needed is not None:
            num_buckets = min(num_buckets, needed)
        num_frames = kind.most_within(num_bytes - num_buckets * bucket_bytes)
        if needed is not None:  # frames for every chunk of every entry will do
            enough = math.ceil(num_buckets * num_ways * most_chunks) + 2
            num_frames = min(num_frames, enough)
        if most_frames is not None:
            num_frames = min(num_frames, most_frames)
        # What a whole frame does not fill still holds buckets.
        left = num_bytes - num_buckets * bucket_bytes - kind.bytes_of(num_frames)
        num_buckets = min(num_buckets + left // bucket_bytes, possible)
        if needed is not None:  # a few times the need: fewer keys share a bucket
            num_buckets = min(num_buckets, _MOST_PER_NEED * needed)
        return num_buckets, num_frames

    best = divided(num_ways * entry_bytes(SHORT_FRAMES), SHORT_FRAMES)
    if best[1] == SHORT_FRAMES:
        # Longer starts cost entries, so they come when they bring frames.
        long = divided(num_ways * entry_bytes(SHORT_FRAMES + 1), None)
        best = long if long[1] > SHORT_FRAMES else best
    return best[0] * num_ways, best[1]
