"""The handle: where a batch of ids landed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import gather_windows

from .keys import Keys
from .state import NO_ENTRY, NULL_FRAME, PageTable

__all__ = ["Handle", "Lookups", "make_handle"]


class Lookups(NamedTuple):
    """A batch of ids, checked and flat; N lookups.

    Attributes:
      keys: words `u32[N]`.
      tables: `i32[N]`.
      valid: `bool[N]` neither padding nor of a table out of range.
      mask: `bool[...]` not padding, in the shape of the ids.
    """

    keys: Keys
    tables: jax.Array
    valid: jax.Array
    mask: jax.Array


class Handle(NamedTuple):
    """Where a batch of ids landed; `[...]` is the shape of the ids, N their number.

    Valid for the state that it came with. After another `admit` or a `prune_step`
    `apply_gradients` drops what no longer matches, and `gather` is undefined.

    Attributes:
      keys: the ids, words `u32[...]`.
      tables: `i32[...]`.
      entries: `i32[...]`, `NO_ENTRY` where the id has none.
      frames: `i32[..., K]`, `NULL_FRAME` for an absent chunk.
      mask: `bool[...]` false for padding.
    """

    keys: Keys
    tables: jax.Array
    entries: jax.Array
    frames: jax.Array
    mask: jax.Array


def make_handle(pages: PageTable, lookups: Lookups, entries: jax.Array) -> Handle:
    """Return the handle of lookups that landed in `entries`, `i32[N]`."""
    shape = lookups.mask.shape
    num_chunks = pages.frames.size // pages.table.size
    frames = gather_windows(pages.frames, entries, num_chunks)
    frames = jnp.where((entries == NO_ENTRY)[:, None], NULL_FRAME, frames)
    return Handle(
        keys=Keys(*(jnp.reshape(word, shape) for word in lookups.keys)),
        tables=lookups.tables.reshape(shape),
        entries=entries.reshape(shape),
        frames=frames.reshape(*shape, num_chunks),
        mask=lookups.mask,
    )
