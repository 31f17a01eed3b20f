"""Filling a budget: how many entries and frames fit into so many bytes."""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from .checks import BudgetError
from .sizes import LANES, SHORT_FRAMES, FrameKind
from .sparse_optim import SlotSpec

if TYPE_CHECKING:  # the config asks for what is here
    from .config import EmbeddingConfig

__all__ = ["INDEX_LIMIT", "fit_config"]

INDEX_LIMIT = 1 << 31
"""What one device numbers is below it: indices are int32."""

# Step, step of decay, threshold, two seed words, next frame, idle frames.
_FIXED_BYTES = 7 * 4
# A page table this much larger than its keys evicts few of them.
_ENTRIES_PER_ID = 1.1
_MOST_PER_NEED = 4
_LONGER = 2  # frames per entry


def fit_config(
    num_bytes: int,
    probe: "EmbeddingConfig",
    specs: tuple[SlotSpec, ...],
    *,
    frames_per_entry: float | None,
    num_ids: int | None,
    filter_share: float,
    shared_share: float,
) -> "EmbeddingConfig":
    """Give a config the sizes that fill a budget.

    Args:
      num_bytes: all-in.
      probe: all but the sizes; with `table_sizes` their entries too.
      specs: the optimizer's slots per frame.
      frames_per_entry: as for `EmbeddingConfig.from_budget`.
      num_ids: as for `EmbeddingConfig.from_budget`.
      filter_share: as for `EmbeddingConfig.from_budget`.
      shared_share: as for `EmbeddingConfig.from_budget`.

    Returns:
      The config.

    Raises:
      BudgetError: on too small a budget, and on one of 2^31 frames or more.
    """
    num_ways, num_chunks = probe.num_ways, probe.num_chunks
    longest = max(probe.table_dims or (probe.embedding_dim,)) // probe.chunk_dim
    kind = FrameKind(probe.chunk_dim, probe.stored_dtype.itemsize, specs)
    is_numbered = probe.table_sizes is not None

    def parts(total: int) -> tuple[int, int, int]:
        """Slots of the filter, shared vectors, and what is left of `total`."""
        filter_slots, num_shared = int(total * filter_share), 0
        left = total - filter_slots - _FIXED_BYTES
        if probe.fallback == "shared":
            held = kind.most_within(int(total * shared_share)) - 1
            num_shared = max(held // num_chunks, 1)
            left -= kind.bytes_of(num_shared * num_chunks + 1)
        return filter_slots, num_shared, left

    least = probe.num_entries if is_numbered else num_ways
    smallest = least * probe.entry_bytes + kind.bytes_of(2)
    filter_slots, num_shared, left = parts(num_bytes)
    if left < smallest:
        too_few, enough = num_bytes, 2 * num_bytes
        while parts(enough)[2] < smallest:
            too_few, enough = enough, 2 * enough
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            suffices = parts(middle)[2] >= smallest
            too_few, enough = (too_few, middle) if suffices else (middle, enough)
        entries = f"one bucket of {num_ways} entries"
        if is_numbered:
            entries = f"an entry for each of {least} rows of table_sizes"
        raise BudgetError(
            f"budget must hold {entries} and one frame beside the shares of filter and "
            f"shared pool, as {enough} bytes do; got {num_bytes}"
        )

    def entry_bytes(num_frames: int) -> int:
        return dataclasses.replace(probe, num_frames=num_frames).entry_bytes

    def divided(frames_per_entry: float) -> tuple[int, int]:
        return _fit_sizes(
            left,
            kind,
            num_ways=num_ways,
            entry_bytes=entry_bytes,
            frames_per_entry=frames_per_entry,
            most_chunks=most_chunks,
            most_entries=(INDEX_LIMIT - 1) // num_chunks,
            num_ids=num_ids,
        )

    most_chunks = longest / (1 - probe.headroom)
    if is_numbered:
        num_entries = probe.num_entries
        num_frames = _fit_frames(left, kind, num_entries, entry_bytes, most_chunks)
    elif frames_per_entry is not None:
        num_entries, num_frames = divided(frames_per_entry)
    elif probe.ranking == "chunks":
        num_entries, num_frames = divided(max(num_chunks / 2, 1))
    else:
        num_entries, num_frames = divided(1)
        # With an entry for half of the ids, the others are rare: length is worth more.
        if num_ids is not None and num_chunks > 1:
            longer = divided(_LONGER)
            if longer[0] >= num_ids / 2:
                num_entries, num_frames = longer
    if num_frames >= INDEX_LIMIT:
        raise BudgetError(
            f"budget must be smaller with chunk_dim={probe.chunk_dim}: one device "
            f"numbers fewer than 2^31 frames, {num_bytes} bytes hold {num_frames}"
        )
    return dataclasses.replace(
        probe,
        num_entries=num_entries,
        num_frames=num_frames,
        filter_slots=filter_slots,
        num_shared=num_shared,
        budgeted_slots=specs,
    )


def _fit_frames(
    num_bytes: int,
    kind: FrameKind,
    num_entries: int,
    entry_bytes: Callable[[int], int],
    most_chunks: float,
) -> int:
    """Return how many frames fit beside a number of entries, see `_fit_sizes`."""

    def most_beside(starts: int) -> int:
        return kind.most_within(num_bytes - num_entries * entry_bytes(starts))

    num_frames = min(most_beside(SHORT_FRAMES), SHORT_FRAMES)
    if num_frames == SHORT_FRAMES:
        num_frames = max(num_frames, most_beside(SHORT_FRAMES + 1))
    return min(num_frames, math.ceil(num_entries * most_chunks) + 2)


def _fit_sizes(
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
