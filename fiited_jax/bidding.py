"""Agreement among the lanes of a batch, without a sort.

Lanes bid for the label they hold with their lane number and the lowest wins, so
whatever is handed out goes to those who come first. Labels are hashed into a scratch
of the order of the batch: nothing here grows with the page table or the pool.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .keys import hash_words

__all__ = ["bid", "find_leaders", "lanes_of_rows", "rank_of"]

_SLOTS_PER_LANE = 4  # a lane shares its slot with another label about once in five


def bid(labels: jax.Array, bidding: jax.Array, salt: jax.Array) -> jax.Array:
    """Hold one round of bids.

    Labels that hash to the same slot contend; a label that loses must bid again with
    another salt. At least one label wins.

    Args:
      labels: `i32[N]`.
      bidding: `bool[N]` the lanes that take part.
      salt: `u32[]` number of the round.

    Returns:
      `i32[N]` the lane that won the slot of each bidding lane. Where it holds the
      same label, it is the lowest bidding lane that does. Of other lanes, any lane.
    """
    num_lanes = labels.size
    num_slots = 1 << (_SLOTS_PER_LANE * num_lanes - 1).bit_length()
    slots = hash_words(labels, salt) & jnp.uint32(num_slots - 1)
    slots = jnp.where(bidding, slots.astype(jnp.int32), num_slots)
    lanes = lax.iota(jnp.int32, num_lanes)
    bids = jnp.full(num_slots, num_lanes - 1, jnp.int32)
    bids = bids.at[slots].min(lanes, mode="drop")
    return bids.at[slots].get(mode="clip")


def find_leaders(labels: jax.Array, taking_part: jax.Array) -> jax.Array:
    """Return the first lane that holds the same label.

    Args:
      labels: `i32[N]`.
      taking_part: `bool[N]`; the others have no leader.

    Returns:
      `i32[N]` lane numbers; N where there is none.

    >>> labels = jnp.array([5, 9, 5, 2])
    >>> find_leaders(labels, labels != 9)
    Array([0, 4, 0, 3], dtype=int32)
    """
    num_lanes = labels.size
    nobody = jnp.full(num_lanes, num_lanes, jnp.int32)

    def bid_round(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        salt, leaders, bidding = carry
        winners = bid(labels, bidding, salt)
        found = bidding & (labels[winners] == labels)
        return salt + 1, jnp.where(found, winners, leaders), bidding & ~found

    _, leaders, _ = lax.while_loop(
        lambda carry: jnp.any(carry[2]), bid_round, (jnp.uint32(0), nobody, taking_part)
    )
    return leaders


def rank_of(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Number the chosen lanes from 0.

    Args:
      chosen: `bool[N]`.

    Returns:
      `i32[N]` the number of each chosen lane, for the others that of the last one
      before, -1 before the first; and `i32[]` how many there are.

    >>> rank_of(jnp.array([False, True, False, True]))
    (Array([-1,  0,  0,  1], dtype=int32), Array(2, dtype=int32))
    """
    rank = jnp.cumsum(chosen, dtype=jnp.int32) - 1
    return rank, jnp.sum(chosen, dtype=jnp.int32)


def lanes_of_rows(rank: jax.Array, chosen: jax.Array, num_rows: int) -> jax.Array:
    """Return the chosen lanes, `i32[num_rows]`, 0 beyond them; as many as fit."""
    rows = jnp.where(chosen, rank, num_rows)
    lanes = lax.iota(jnp.int32, chosen.size)
    return jnp.zeros(num_rows, jnp.int32).at[rows].set(lanes, mode="drop")
