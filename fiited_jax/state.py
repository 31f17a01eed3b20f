"""The state of a store: a pytree of arrays, and nothing else.

Shapes: M page-table entries, W ways, K chunks per vector, C chunk width, P pool
frames; U utilities per entry, K when every chunk is ranked by itself, 1 when vectors
are ranked by length; Q coarse values per entry. Every array is flat or made of lines,
so that no backend pads or relayouts it; `pallas_kernels.gather_windows` reads the
window of one entry or frame.
"""

import dataclasses
from typing import Any

import jax

from pallas_kernels import NULL_FRAME as NULL_FRAME

__all__ = [
    "FREE_ENTRY",
    "NO_ENTRY",
    "NULL_FRAME",
    "ChunkPool",
    "EmbeddingState",
    "FrameArena",
    "PageTable",
]

FREE_ENTRY = 0  # the owner of an entry that tracks no key
NO_ENTRY = -1  # the entry of an id that is not tracked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PageTable:
    """Which keys are tracked, where their chunks are and what they are worth.

    Entry e belongs to bucket e // W, and its key hashes to that bucket. With
    `table_sizes`, entry e belongs to the e-th row, table after table; its key is not
    stored, and it is tracked as long as it has a chunk or a utility. The chunks of an
    entry lie in consecutive frames, a *run*: its start and which chunks there are
    tell the frame of each, so no frame numbers are stored. With `ranking="lengths"`,
    32-bit ids, K below 256 and fewer tables an entry takes 12 bytes, and 10 with a pool
    of up to 65,536 frames, with `table_sizes` 7 and 5.

    Attributes:
      key_low: low word of the id; `None` with `table_sizes`.
      key_high: high word of the id; `None` with 32-bit ids and with `table_sizes`.
      owner: table number plus 1, `FREE_ENTRY` if no key is tracked; `None` with
        `table_sizes`.
      extent: which chunks have a frame: how many, the first ones, if vectors are
        ranked by length; else a bit for each.
      start: first frame of the run, `NULL_FRAME` if there is none; of 16 bits if they
        are enough for the pool.
      utility: worth of the entry or of each chunk at `EmbeddingState.decayed_at`, coded
        by `fiited_jax.utility.encode`.
      coarse: the first Q values of each vector and their optimizer state, for chunks
        without a frame, see `fiited_jax.coarse`; `None` without such values.
      num_ways: W; no array, but part of the structure: a store of another number of
        ways would look for keys in the wrong buckets.
      table_sizes: as for `EmbeddingConfig`; part of the structure too.
    """

    key_low: jax.Array | None  # u32[M]
    key_high: jax.Array | None  # u32[M]
    owner: jax.Array | None  # u8[M], u16[M] or u32[M]
    extent: jax.Array  # u8[M], u16[M] or u32[M]
    start: jax.Array  # i32[M] or u16[M]
    utility: jax.Array  # u16[M * U]
    coarse: jax.Array | None  # u8[M * Q]
    num_ways: int = dataclasses.field(metadata={"static": True})
    table_sizes: tuple[int, ...] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkPool:
    """The values of all frames and their optimizer state.

    Attributes:
      values: lines of whole chunks, see `sizes.pool_line_shape`; of bfloat16 their
        bits, see `fiited_jax.precision`.
      slots: the optimizer's state; `[C]` leaves are stored as lines, scalars flat, to
        the end of a line of 128.
    """

    values: jax.Array  # f32[L, w] or bits u16[L, w], L * w >= P * C
    slots: Any  # leaves [L, w], or [S] with S >= P a multiple of 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameArena:
    """How far the frames are handed out; they are taken in order, in runs.

    Frames of an evicted key that its successor does not take over are idle until
    the next prune step closes the gaps.

    Attributes:
      next_frame: the first frame not handed out since the last prune step that moved.
      idle: frames before it that no chunk owns, the null frame not counted.
    """

    next_frame: jax.Array  # i32[]
    idle: jax.Array  # i32[]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingState:
    """Everything that an `EmbeddingStore` carries from step to step.

    Attributes:
      step: optimizer updates so far.
      decayed_at: the step to which all utilities are decayed.
      threshold: the priority that every chunk chosen by the last prune step reached,
        decayed as utilities are; 0 before.
      seed: drives the initial values.
      pages: the page table.
      pool: the chunk pool.
      arena: the frames handed out.
      shared: the shared pool, see `fiited_jax.shared_pool`; `None` without one.
      doorkeeper: unknown keys that came lately, see `fiited_jax.doorkeeper`; `None`
        without an admission filter.

    Invariants, see `fiited_jax.invariants.check_invariants`:
      1. runs of tracked keys lie in `[1, next_frame)` and do not overlap; frames there
        that are in no run are counted by `idle`;
      2. no key is tracked twice, and each lies in the bucket it hashes to;
      3. a free entry has no run and no utility, and without `table_sizes` no coarse
        values;
      4. no run is longer than the rules of its table allow;
      5. `decayed_at` is at most `step`, and `threshold` at least 0;
      6. the null frames hold zeros.
    """

    step: jax.Array  # i32[]
    decayed_at: jax.Array  # i32[]
    threshold: jax.Array  # f32[]
    seed: jax.Array  # u32[2]
    pages: PageTable
    pool: ChunkPool
    arena: FrameArena
    shared: ChunkPool | None
    doorkeeper: jax.Array | None  # u8[filter_slots]
