"""The state of a store: a pytree of arrays, and nothing else.

Shapes: M page-table entries, W ways, K chunks per vector, C chunk width, P pool
frames. Every array is flat or made of lines, so that no backend pads or relayouts it;
`pallas_kernels.gather_windows` reads the window of one entry or frame.
"""

import dataclasses
from typing import Any

import jax

from pallas_kernels import NULL_FRAME as NULL_FRAME

__all__ = [
    "EMPTY_TABLE",
    "NO_ENTRY",
    "NULL_FRAME",
    "ChunkPool",
    "EmbeddingState",
    "FreeList",
    "PageTable",
]

EMPTY_TABLE = -1  # the table number of an entry that tracks no key
NO_ENTRY = -1  # the entry of an id that is not tracked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PageTable:
    """Which keys are tracked, where their chunks are and what they are worth.

    Entry e belongs to bucket e // W, and its key hashes to that bucket.

    Attributes:
      key_low: low word of the id.
      key_high: high word of the id.
      table: table number, `EMPTY_TABLE` if the entry is free.
      last_step: step to which `utility` is decayed: the one that took the key's
        last batch, `EmbeddingState.step` + 1 while that batch is under way.
      frames: frame of each chunk, `NULL_FRAME` if it is pruned.
      utility: worth of each chunk at `last_step`, finite and at least 0.
    """

    key_low: jax.Array  # u32[M]
    key_high: jax.Array  # u32[M]
    table: jax.Array  # i32[M]
    last_step: jax.Array  # i32[M]
    frames: jax.Array  # i32[M * K]
    utility: jax.Array  # f32[M * K]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkPool:
    """The values of all frames and their optimizer state.

    Attributes:
      values: lines of whole chunks, see `config.pool_line_shape`.
      slots: the optimizer's state; `[C]` leaves are stored as lines, scalars flat.
    """

    values: jax.Array  # f32[L, w], L * w >= P * C
    slots: Any  # leaves [L, w] or [P]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FreeList:
    """A stack of the frames that no chunk owns.

    Attributes:
      frames: the stack; elements from `count` on mean nothing.
      count: its height.
    """

    frames: jax.Array  # i32[P]
    count: jax.Array  # i32[]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingState:
    """Everything that an `EmbeddingStore` carries from step to step.

    Attributes:
      step: optimizer updates so far.
      seed: drives the initial values.
      pages: the page table.
      pool: the chunk pool.
      free: the free frames.

    Invariants, see `fiited_jax.invariants.check_invariants`:
      1. every frame but the null frame is owned by exactly one chunk of a tracked
         key, or is on the free list once;
      2. no key is tracked twice, and each lies in the bucket it hashes to;
      3. an empty entry owns no frame and has no utility;
      4. utilities are finite and at least 0, `last_step` is at most `step + 1`;
      5. the null frame holds zeros.
    """

    step: jax.Array  # i32[]
    seed: jax.Array  # u32[2]
    pages: PageTable
    pool: ChunkPool
    free: FreeList
