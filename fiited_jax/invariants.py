"""What must hold of every state, checked on the host."""

import jax.numpy as jnp
import numpy as np

from .chunk_pool import read_frames
from .config import EmbeddingConfig
from .keys import Keys
from .page_table import buckets_of
from .state import EMPTY_TABLE, NULL_FRAME, EmbeddingState

__all__ = ["check_invariants"]


def check_invariants(state: EmbeddingState, config: EmbeddingConfig) -> None:
    """Check the invariants that `EmbeddingState` lists.

    Args:
      state: the state.
      config: what it was made for.

    Raises:
      ValueError: naming the broken invariant and the first place.
    """
    _check_frames(state, config)
    _check_keys(state, config)
    _check_utilities(state, config)
    null_frame = jnp.array([NULL_FRAME], jnp.int32)
    values, _ = read_frames(state.pool, null_frame, config.chunk_dim)
    if np.any(np.asarray(values)):
        raise ValueError(f"the null frame must hold zeros, holds {values[0]}")


def _check_frames(state: EmbeddingState, config: EmbeddingConfig) -> None:
    frames = np.asarray(state.pages.frames)
    count = int(state.free.count)
    if not 0 <= count < config.num_frames:
        raise ValueError(
            f"the free list must hold 0 to {config.num_frames - 1} frames, got {count}"
        )
    owned = frames[frames != NULL_FRAME]
    places = np.concatenate([owned, np.asarray(state.free.frames)[:count]])
    bad = places[(places <= NULL_FRAME) | (places >= config.num_frames)]
    if bad.size:
        raise ValueError(f"frames must be in [1, {config.num_frames}), got {bad[0]}")
    uses = np.bincount(places, minlength=config.num_frames)[1:]
    if np.any(uses != 1):
        frame = int(np.argmax(uses != 1)) + 1
        raise ValueError(
            "every frame must have one owner or be free once; frame "
            f"{frame} occurs {uses[frame - 1]} times"
        )


def _check_keys(state: EmbeddingState, config: EmbeddingConfig) -> None:
    pages = state.pages
    table = np.asarray(pages.table)
    bad = (table < EMPTY_TABLE) | (table >= config.num_tables)
    if np.any(bad):
        entry = int(np.argmax(bad))
        raise ValueError(
            f"tables must be in [0, {config.num_tables}), entry {entry} "
            f"has {table[entry]}"
        )
    tracked = table != EMPTY_TABLE
    words = np.stack(
        [np.asarray(pages.key_low), np.asarray(pages.key_high), table.view(np.uint32)],
        axis=1,
    )[tracked]
    keys, counts = np.unique(words, axis=0, return_counts=True)
    if np.any(counts > 1):
        low, high, owner = keys[np.argmax(counts)]
        raise ValueError(
            f"no key may be tracked twice; id words ({low}, {high}) of table "
            f"{owner} are"
        )
    home = np.asarray(
        buckets_of(Keys(pages.key_low, pages.key_high), pages.table, config.num_buckets)
    )
    astray = tracked & (home != np.arange(len(table)) // config.num_ways)
    if np.any(astray):
        entry = int(np.argmax(astray))
        raise ValueError(
            f"a key must lie in the bucket it hashes to; entry {entry} belongs to "
            f"bucket {home[entry]}"
        )


def _check_utilities(state: EmbeddingState, config: EmbeddingConfig) -> None:
    pages = state.pages
    empty = np.repeat(np.asarray(pages.table) == EMPTY_TABLE, config.num_chunks)
    frames, utility = np.asarray(pages.frames), np.asarray(pages.utility)
    bad = empty & ((frames != NULL_FRAME) | (utility != 0))
    if np.any(bad):
        raise ValueError(
            "an empty entry must own no frame and have no utility, chunk "
            f"{int(np.argmax(bad))} has frame {frames[np.argmax(bad)]} and utility "
            f"{utility[np.argmax(bad)]}"
        )
    bad = ~np.isfinite(utility) | (utility < 0)
    if np.any(bad):
        chunk = int(np.argmax(bad))
        raise ValueError(
            f"utilities must be finite and at least 0, chunk {chunk} has "
            f"{utility[chunk]}"
        )
    last_step = np.asarray(pages.last_step)
    latest = int(state.step) + 1
    bad = (last_step < 0) | (last_step > latest)
    if np.any(bad):
        entry = int(np.argmax(bad))
        raise ValueError(
            f"last_step must be in [0, {latest}], entry {entry} has {last_step[entry]}"
        )
