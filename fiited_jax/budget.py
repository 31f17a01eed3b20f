"""Filling a budget: how many entries and frames fit into so many bytes."""

import math
from collections.abc import Callable
from typing import NamedTuple

from .checks import BudgetError
from .sizes import LANES, SHORT_FRAMES, FrameKind

__all__ = ["INDEX_LIMIT", "Needs", "Shares", "Sizes", "fill"]

INDEX_LIMIT = 1 << 31
"""What one device numbers is below it: indices are int32."""

# Step, step of decay, threshold, two seed words, next frame, idle frames.
_FIXED_BYTES = 7 * 4
# A page table this much larger than its keys evicts few of them.
_ENTRIES_PER_ID = 1.1
_MOST_PER_NEED = 4


class Needs(NamedTuple):
    """What is to be given sizes.

    Attributes:
      kind: of the frames.
      num_chunks: K, chunks per vector.
      most_chunks: frames that an entry can use, what is left free for new ones counted.
      entry_group: what the entries are a multiple of: buckets, or several of them.
      num_rows: entries that there must be, `None` if a budget is to be filled.
      most_frames: frames that these can use, counted alike.
      num_ids: keys that there can be, `None` if that is not known.
      entry_bytes: bytes per entry, given the number of frames.
    """

    kind: FrameKind
    num_chunks: int
    most_chunks: float
    entry_group: int
    num_rows: int | None
    most_frames: int
    num_ids: int | None
    entry_bytes: Callable[[int], int]


class Shares(NamedTuple):
    """How a budget is divided; as for `EmbeddingConfig.from_budget`.

    Attributes:
      filter: share of an admission filter.
      shared: share of the shared pool, `None` without one.
      frames_per_entry: mean frames per tracked key.
    """

    filter: float
    shared: float | None
    frames_per_entry: float


class Sizes(NamedTuple):
    """Sizes of a store; as for `EmbeddingConfig`."""

    num_entries: int
    num_frames: int
    filter_slots: int
    num_shared: int


def fill(num_bytes: int, needs: Needs, shares: Shares) -> Sizes:
    """Choose sizes that fill a budget.

    Args:
      num_bytes: all-in.
      needs: what is to be given sizes.
      shares: how to divide.

    Returns:
      The sizes.

    Raises:
      BudgetError: on a budget that is too small, or holds 2^31 frames or more.
    """
    kind, num_rows = needs.kind, needs.num_rows

    def parts(total: int) -> tuple[int, int, int]:
        """Slots of the filter, shared vectors, and what is left of `total`."""
        filter_slots, num_shared = int(total * shares.filter), 0
        left = total - filter_slots - _FIXED_BYTES
        if shares.shared is not None:
            held = kind.most_within(int(total * shares.shared)) - 1
            num_shared = max(held // needs.num_chunks, 1)
            left -= kind.bytes_of(num_shared * needs.num_chunks + 1)
        return filter_slots, num_shared, left

    least = needs.entry_group if num_rows is None else num_rows
    smallest = least * needs.entry_bytes(2) + kind.bytes_of(2)
    filter_slots, num_shared, left = parts(num_bytes)
    if left < smallest:
        too_few, enough = num_bytes, 2 * num_bytes
        while parts(enough)[2] < smallest:
            too_few, enough = enough, 2 * enough
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            suffices = parts(middle)[2] >= smallest
            too_few, enough = (too_few, middle) if suffices else (middle, enough)
        entries = f"{least} entries, at least one bucket,"
        if num_rows is not None:
            entries = f"an entry for each of {least} rows of table_sizes"
        raise BudgetError(
            f"budget must hold {entries} and one frame beside the shares of filter and "
            f"shared pool, as {enough} bytes do; got {num_bytes}"
        )

    if num_rows is not None:
        num_entries, num_frames = num_rows, _fit_frames(left, num_rows, needs)
    else:
        num_entries, num_frames = _fit_sizes(left, needs, shares.frames_per_entry)
    if num_frames >= INDEX_LIMIT:
        raise BudgetError(
            f"budget must be smaller with chunk_dim={kind.chunk_dim}: one device "
            f"numbers fewer than 2^31 frames, {num_bytes} bytes hold {num_frames}"
        )
    return Sizes(num_entries, num_frames, filter_slots, num_shared)


def _fit_frames(num_bytes: int, num_rows: int, needs: Needs) -> int:
    """Return how many frames fit beside an entry for every row."""

    def most_beside(starts: int) -> int:
        left = num_bytes - num_rows * needs.entry_bytes(starts)
        return needs.kind.most_within(left)

    num_frames = min(most_beside(SHORT_FRAMES), SHORT_FRAMES)
    if num_frames == SHORT_FRAMES:
        num_frames = max(num_frames, most_beside(SHORT_FRAMES + 1))
    return min(num_frames, needs.most_frames)


def _fit_sizes(
    num_bytes: int, needs: Needs, frames_per_entry: float
) -> tuple[int, int]:
    """Divide bytes between a page table of groups of entries and a pool.

    Args:
      num_bytes: what both may take.
      needs: of the store.
      frames_per_entry: mean frames per tracked key.

    Returns:
      How many entries and frames. At least a group and two frames: what is too small
      for them is for the caller to refuse.
    """
    kind, entry_group, num_ids = needs.kind, needs.entry_group, needs.num_ids
    most_entries = (INDEX_LIMIT - 1) // needs.num_chunks
    frame_bytes = kind.bytes_of(LANES) / LANES
    needed = None
    if num_ids is not None:
        needed = math.ceil(_ENTRIES_PER_ID * num_ids / entry_group)

    def divided(group_bytes: int, most_frames: int | None) -> tuple[int, int]:
        mean_group = group_bytes + entry_group * frames_per_entry * frame_bytes
        possible = (num_bytes - kind.bytes_of(2)) // group_bytes
        possible = min(possible, max(most_entries // entry_group, 1))
        num_groups = min(max(int(num_bytes / mean_group), 1), possible)
        if needed is not None:
            num_groups = min(num_groups, needed)
        num_frames = kind.most_within(num_bytes - num_groups * group_bytes)
        if needed is not None:  # frames for every chunk of every entry will do
            enough = math.ceil(num_groups * entry_group * needs.most_chunks) + 2
            num_frames = min(num_frames, enough)
        if most_frames is not None:
            num_frames = min(num_frames, most_frames)
        # What a whole frame does not fill still holds groups.
        left = num_bytes - num_groups * group_bytes - kind.bytes_of(num_frames)
        num_groups = min(num_groups + left // group_bytes, possible)
        if needed is not None:  # a few times the need: fewer keys share a bucket
            num_groups = min(num_groups, _MOST_PER_NEED * needed)
        return num_groups, num_frames

    best = divided(entry_group * needs.entry_bytes(SHORT_FRAMES), SHORT_FRAMES)
    if best[1] == SHORT_FRAMES:
        # Longer starts cost entries, so they come when they bring frames.
        long = divided(entry_group * needs.entry_bytes(SHORT_FRAMES + 1), None)
        best = long if long[1] > SHORT_FRAMES else best
    return best[0] * entry_group, best[1]
