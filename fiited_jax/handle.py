"""The handle: where a batch of ids landed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .keys import Keys

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

    Valid until a later `admit` evicts one of its keys: `apply_gradients` drops what has
    lost its entry, `gather` does not tell.

    Attributes:
      keys: the ids, words `u32[...]`.
      tables: `i32[...]`.
      entries: `i32[...]`, `NO_ENTRY` where the id has none.
      mask: `bool[...]` false for padding.
    """

    keys: Keys
    tables: jax.Array
    entries: jax.Array
    mask: jax.Array


def make_handle(lookups: Lookups, entries: jax.Array) -> Handle:
    """Return the handle of lookups that landed in `entries`, `i32[N]`."""
    shape = lookups.mask.shape
    return Handle(
        keys=Keys(*(jnp.reshape(word, shape) for word in lookups.keys)),
        tables=lookups.tables.reshape(shape),
        entries=entries.reshape(shape),
        mask=lookups.mask,
    )
