"""HotSketch: the hot ids, told by scores that are summed in buckets of few cells."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import NO_WAY, gather_windows, probe_page_table

from ..bidding import bid, find_leaders, rank_of
from ..keys import Keys, hash_words
from ..memory import count_arrays
from ..state import NULL_FRAME

__all__ = [
    "NO_CELL",
    "NUM_CELLS",
    "HotSketch",
    "cool",
    "find_cells",
    "init_sketch",
    "insert",
    "promote",
    "sketch_bytes",
]

NO_CELL = -1  # the cell of an id that is not in the sketch
NUM_CELLS = 4  # per bucket
_FREE = 0  # the owner of an empty cell
_DECAY = 0.99  # of all scores, whenever a mass has come in that is this many
_MASS_PER_DECAY = 10.0  # thresholds per bucket
_SALT = 0x5EED  # buckets and shared rows must not come from one hash


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class HotSketch:
    """Which ids are scored, how high, and which have a row of their own.

    S buckets of `NUM_CELLS` cells, M in all; H rows. An id is *hot* if its cell has a
    frame.

    Attributes:
      key_low: low word of the id.
      key_high: high word of the id; `None` with 32-bit ids.
      owner: table number plus 1, 0 for an empty cell.
      score: sum of what the id was given, and of what the cell held before it.
      frame: of its own row, `NULL_FRAME` if it has none.
      free: a stack of the frames that no id owns.
      num_free: how many there are.
      mass: scores that came in since the last `cool`.
    """

    key_low: jax.Array  # u32[M]
    key_high: jax.Array | None  # u32[M]
    owner: jax.Array  # u8[M], u16[M] or u32[M]
    score: jax.Array  # f32[M]
    frame: jax.Array  # i32[M]
    free: jax.Array  # i32[H]
    num_free: jax.Array  # i32[]
    mass: jax.Array  # f32[]


def init_sketch(num_hot: int, num_tables: int, id_bits: int) -> HotSketch:
    """Return an empty sketch, a bucket for each row.

    Args:
      num_hot: H, rows for hot ids: frames 1 to H.
      num_tables: tables of the data.
      id_bits: 32 or 64.
    """
    size = num_hot * NUM_CELLS
    return HotSketch(
        key_low=jnp.zeros(size, jnp.uint32),
        key_high=jnp.zeros(size, jnp.uint32) if id_bits > 32 else None,
        owner=jnp.full(size, _FREE, np.min_scalar_type(num_tables)),
        score=jnp.zeros(size, jnp.float32),
        frame=jnp.full(size, NULL_FRAME, jnp.int32),
        free=jnp.arange(num_hot, 0, -1, dtype=jnp.int32),
        num_free=jnp.int32(num_hot),
        mass=jnp.float32(0),
    )


def find_cells(
    sketch: HotSketch, keys: Keys, tables: jax.Array, valid: jax.Array
) -> jax.Array:
    """Find the cells of ids.

    Args:
      sketch: the sketch.
      keys: words `u32[N]`.
      tables: `i32[N]`.
      valid: `bool[N]`; the others are not found.

    Returns:
      `i32[N]` cells, `NO_CELL` where the id is not in the sketch.
    """
    valid &= _fits(sketch, keys)
    buckets = _buckets_of(sketch, keys, tables)
    words, query = [sketch.key_low, sketch.owner], [keys.low, _owner(sketch, tables)]
    if sketch.key_high is not None:
        words.append(sketch.key_high)
        query.append(keys.high)
    way = probe_page_table(tuple(words), tuple(query), buckets, NUM_CELLS)
    return jnp.where(valid & (way != NO_WAY), buckets * NUM_CELLS + way, NO_CELL)


def insert(
    sketch: HotSketch,
    keys: Keys,
    tables: jax.Array,
    scores: jax.Array,
    taking_part: jax.Array,
) -> HotSketch:
    """Add scores to ids, as if lane by lane once those in the sketch have theirs.

    An id that is not in the sketch takes the cell of the lowest score in its bucket
    (ties: the first) and adds to that score, as in SpaceSaving; if that cell is hot,
    the id is not noted. Nor are ids wider than the cells.

    Args:
      sketch: the sketch.
      keys: words `u32[N]`.
      tables: `i32[N]`.
      scores: `f32[N]` finite, not negative.
      taking_part: `bool[N]`.

    Returns:
      The sketch, updated.
    """
    size, lanes = sketch.score.size, lax.iota(jnp.int32, scores.size)
    buckets, owners = _buckets_of(sketch, keys, tables), _owner(sketch, tables)
    taking_part &= _fits(sketch, keys)

    def one_per_bucket(
        carry: tuple[HotSketch, jax.Array, jax.Array],
    ) -> tuple[HotSketch, jax.Array, jax.Array]:
        sketch, waiting, salt = carry
        cells = find_cells(sketch, keys, tables, waiting)
        found = cells != NO_CELL
        score = sketch.score.at[jnp.where(found, cells, size)].add(scores, mode="drop")
        waiting &= ~found
        held = gather_windows(score, buckets, NUM_CELLS)
        way = jnp.argmin(held, axis=-1)
        cells = buckets * NUM_CELLS + way.astype(jnp.int32)
        waiting &= sketch.frame[cells] == NULL_FRAME
        comes = waiting & (bid(buckets, waiting, salt) == lanes)
        at = jnp.where(comes, cells, size)
        high = sketch.key_high
        sketch = dataclasses.replace(
            sketch,
            key_low=sketch.key_low.at[at].set(keys.low, mode="drop"),
            key_high=None if high is None else high.at[at].set(keys.high, mode="drop"),
            owner=sketch.owner.at[at].set(owners, mode="drop"),
            score=score.at[at].add(scores, mode="drop"),
        )
        return sketch, waiting & ~comes, salt + 1

    mass = sketch.mass + jnp.sum(jnp.where(taking_part, scores, 0.0))
    sketch, _, _ = lax.while_loop(
        lambda carry: jnp.any(carry[1]),
        one_per_bucket,
        (sketch, taking_part, jnp.uint32(0)),
    )
    return dataclasses.replace(sketch, mass=mass)


def promote(
    sketch: HotSketch, cells: jax.Array, threshold: float
) -> tuple[HotSketch, jax.Array]:
    """Give frames to cells whose score has reached the threshold, as far as they go.

    Args:
      sketch: the sketch.
      cells: `i32[N]`, `NO_CELL` for none; the first lanes go first.
      threshold: score from which an id is hot.

    Returns:
      The sketch, updated; and `i32[N]` the frame that a lane's cell was given, in its
      first lane, `NULL_FRAME` elsewhere.
    """
    at = jnp.maximum(cells, 0)
    rises = (cells != NO_CELL) & (sketch.score[at] >= threshold)
    rises &= sketch.frame[at] == NULL_FRAME
    leads = find_leaders(cells, rises) == lax.iota(jnp.int32, cells.size)
    rank, _ = rank_of(leads)
    given = leads & (rank < sketch.num_free)
    last = jnp.maximum(sketch.num_free - 1 - rank, 0)
    frames = jnp.where(given, sketch.free[last], NULL_FRAME)
    into = jnp.where(given, cells, sketch.frame.size)
    sketch = dataclasses.replace(
        sketch,
        frame=sketch.frame.at[into].set(frames, mode="drop"),
        num_free=sketch.num_free - jnp.sum(given, dtype=jnp.int32),
    )
    return sketch, frames


def sketch_bytes(num_hot: int, num_tables: int, id_bits: int) -> int:
    """Return the bytes of a sketch."""
    make = functools.partial(init_sketch, num_hot, num_tables, id_bits)
    return count_arrays(jax.eval_shape(make))


def cool(sketch: HotSketch, threshold: float) -> tuple[HotSketch, jax.Array]:
    """Decay all scores for the mass that came in; what falls cold gives its frame back.

    Args:
      sketch: the sketch.
      threshold: score below which a hot id is cold again.

    Returns:
      The sketch, updated, and `i32[]` how many ids became cold.
    """
    num_hot = sketch.free.size
    decays = sketch.mass / (_MASS_PER_DECAY * num_hot * threshold)
    score = sketch.score * jnp.power(_DECAY, decays)
    falls = (sketch.frame != NULL_FRAME) & (score < threshold)
    rank, count = rank_of(falls)
    onto = jnp.where(falls, sketch.num_free + rank, num_hot)
    sketch = dataclasses.replace(
        sketch,
        score=score,
        free=sketch.free.at[onto].set(sketch.frame, mode="drop"),
        frame=jnp.where(falls, NULL_FRAME, sketch.frame),
        num_free=sketch.num_free + count,
        mass=jnp.zeros_like(sketch.mass),
    )
    return sketch, count


def _buckets_of(sketch: HotSketch, keys: Keys, tables: jax.Array) -> jax.Array:
    mixed = hash_words(keys.low, keys.high, tables, jnp.uint32(_SALT))
    num_buckets = sketch.score.size // NUM_CELLS
    return (mixed % jnp.uint32(num_buckets)).astype(jnp.int32)


def _fits(sketch: HotSketch, keys: Keys) -> jax.Array:
    if sketch.key_high is not None:
        return jnp.ones(keys.high.shape, bool)
    return keys.high == 0


def _owner(sketch: HotSketch, tables: jax.Array) -> jax.Array:
    return (tables + 1).astype(sketch.owner.dtype)
