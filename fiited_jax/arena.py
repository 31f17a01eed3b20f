"""The arena: frames are handed out in order, in runs, until the next prune step."""

import jax
import jax.numpy as jnp

from pallas_kernels import gather_windows

from .config import EmbeddingConfig
from .extent import num_present
from .state import NO_ENTRY, NULL_FRAME, EmbeddingState, FrameArena
from .table_rules import allowed_chunks

__all__ = ["allot", "frames_used", "init_arena"]


def init_arena() -> FrameArena:
    """Return an arena of which only the null frame is taken."""
    return FrameArena(next_frame=jnp.int32(NULL_FRAME + 1), idle=jnp.int32(0))


def frames_used(arena: FrameArena) -> jax.Array:
    """Count the frames that chunks own, `i32[]`."""
    return arena.next_frame - 1 - arena.idle


def allot(
    state: EmbeddingState,
    new_entries: jax.Array,
    tables: jax.Array,
    config: EmbeddingConfig,
) -> tuple[FrameArena, jax.Array, jax.Array]:
    """Find frames for the first chunks of new keys, in the order of their lanes.

    A new key takes over frames of the one it evicts if that has enough; else it gets
    new ones while there are; else it takes over what there is. So does every lane
    behind one that asks for more than are left.

    Args:
      state: the state, its page table not yet changed.
      new_entries: `i32[N]` distinct, `NO_ENTRY` for lanes that are not new.
      tables: `i32[N]` of the new keys.
      config: sizes and rules.

    Returns:
      The arena; and `i32[N]` the start and length of the run of each new key, 0 for
      lanes that are not new.
    """
    arena = state.arena
    wanted = jnp.minimum(config.initial_chunks, allowed_chunks(tables, config))
    is_new = new_entries != NO_ENTRY
    old_start = gather_windows(state.pages.start, new_entries, 1)[:, 0].astype(
        jnp.int32
    )
    old_extent = gather_windows(state.pages.extent, new_entries, 1)[:, 0]
    had = jnp.where(is_new, num_present(old_extent, config), 0)
    asks = is_new & (had < wanted)
    asked = jnp.where(asks, wanted, 0)
    upto = jnp.cumsum(asked, dtype=jnp.int32)
    is_served = asks & (upto <= config.num_frames - arena.next_frame)
    kept = jnp.where(is_served, 0, jnp.minimum(had, wanted))
    count = jnp.where(is_served, wanted, kept)
    start = jnp.where(is_served, arena.next_frame + upto - asked, old_start)
    new_arena = FrameArena(
        next_frame=arena.next_frame
        + jnp.sum(jnp.where(is_served, asked, 0), dtype=jnp.int32),
        idle=arena.idle + jnp.sum(had - kept, dtype=jnp.int32),
    )
    return new_arena, jnp.where(count > 0, start, NULL_FRAME), count
