"""Finding keys: the pieces of memory that hold their buckets, compared lane by lane."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..lines import LANES
from ..reference import NO_WAY, Arrays

__all__ = ["probe_page_table"]

_PIECE_BYTES = 512  # the least that is copied from a flat array, of any dtype


def probe_page_table(
    words: Arrays,
    queries: Arrays,
    buckets: jax.Array,
    num_ways: int,
    *,
    interpret: Any = False,
) -> jax.Array:
    """Find each query in its bucket; see `pallas_kernels.api.probe_page_table`.

    Args:
      words: each `[num_buckets * W]` flat, integers, a multiple of 512 bytes.
      queries: each `[...]`, one per word.
      buckets: `i32[...]`, all in range.
      num_ways: W, a divisor of 128.
      interpret: as for `pl.pallas_call`.

    Returns:
      `i32[...]`.

    Raises:
      NotImplementedError: on another W, and on other words.
    """
    if LANES % num_ways:
        raise NotImplementedError(
            f"implementation='mosaic_tpu' needs a num_ways that divides {LANES}, got "
            f"{num_ways}"
        )
    for word in words:
        _check_word(word)
    num_blocks = -(-buckets.size // LANES)
    if not num_blocks:
        return jnp.zeros(buckets.shape, jnp.int32)
    behind = num_blocks * LANES - buckets.size
    scalars, *rows = (
        jnp.pad(row.reshape(-1).astype(jnp.int32), (0, behind))
        for row in (buckets, buckets, *queries)
    )
    of_block = pl.BlockSpec((None, 1, LANES), lambda block: (block, 0, 0))
    ways = pl.pallas_call(
        functools.partial(_probe_block, num_words=len(words), num_ways=num_ways),
        out_shape=jax.ShapeDtypeStruct((num_blocks, 1, LANES), jnp.int32),
        grid=(num_blocks,),
        in_specs=[
            pl.BlockSpec((LANES,), lambda block: (block,), memory_space=pltpu.SMEM),
            *[of_block] * len(rows),
            *[pl.BlockSpec(memory_space=pl.ANY)] * len(words),
        ],
        out_specs=of_block,
        scratch_shapes=[
            *(pltpu.VMEM((LANES * _piece(word),), word.dtype) for word in words),
            pltpu.SemaphoreType.DMA((len(words),)),
        ],
        interpret=interpret,
        name="probe_page_table",
    )(scalars, *(row.reshape(num_blocks, 1, LANES) for row in rows), *words)
    return ways.reshape(-1)[: buckets.size].reshape(buckets.shape)


def _check_word(word: jax.Array) -> None:
    needs = "implementation='mosaic_tpu' needs words of"
    if not jnp.issubdtype(word.dtype, jnp.integer) or word.dtype.itemsize > 4:
        raise NotImplementedError(
            f"{needs} integers of at most 32 bits, got {word.dtype}"
        )
    if word.ndim != 1 or word.size % _piece(word) or word.size >= 1 << 31:
        raise NotImplementedError(
            f"{needs} fewer than 2^31 values in one axis, of {word.dtype} a multiple "
            f"of {_piece(word)}; got shape {word.shape}"
        )


def _piece(word: Any) -> int:
    """Return how many values are copied together."""
    return _PIECE_BYTES // word.dtype.itemsize


def _probe_block(
    scalars: Any, buckets: Any, *refs: Any, num_words: int, num_ways: int
) -> None:
    """Probe for 128 queries, one per lane.

    Args:
      scalars: `i32[128]`, the buckets.
      buckets: `i32[1, 128]`, the same, in lanes.
      *refs: per word its queries `i32[1, 128]`; per word the word, in the memory of the
        chip; the ways `i32[1, 128]`, to be written; per word `[128 * n]` of its dtype,
        where pieces of n values arrive; a semaphore per word.
      num_words: of a key.
      num_ways: W.
    """
    queries, words = refs[:num_words], refs[num_words : 2 * num_words]
    ways, *landings, arrivals = refs[2 * num_words :]

    def copies_of(row: Any) -> list[Any]:
        entry = scalars[row] * num_ways
        copies = []
        for number, (word, landing) in enumerate(zip(words, landings, strict=True)):
            piece = _piece(word)
            source = pl.ds(pl.multiple_of(entry // piece * piece, piece), piece)
            target = pl.ds(pl.multiple_of(row * piece, piece), piece)
            copies.append(
                pltpu.make_async_copy(
                    word.at[source], landing.at[target], arrivals.at[number]
                )
            )
        return copies

    def start(row: Any, _: None) -> None:
        for copy in copies_of(row):
            copy.start()

    def wait(row: Any, _: None) -> None:
        for copy in copies_of(row):
            copy.wait()

    lax.fori_loop(0, LANES, start, None)
    lax.fori_loop(0, LANES, wait, None)
    # Down a lane: the 128 entries around its bucket, which is W of them.
    entries = buckets[...] * num_ways
    places = lax.broadcasted_iota(jnp.int32, (LANES, LANES), 0)
    matches = places // num_ways == entries % LANES // num_ways
    for query, landing in zip(queries, landings, strict=True):
        piece = _piece(landing)
        held = landing[...].astype(jnp.int32).reshape(LANES, piece)
        around = held[:, :LANES].T
        for part in range(1, piece // LANES):
            others = held[:, part * LANES : (part + 1) * LANES].T
            around = jnp.where(entries % piece // LANES == part, others, around)
        matches &= around == query[...]
    way = jnp.where(matches, places % num_ways, num_ways)
    way = jnp.min(way, axis=0, keepdims=True)
    ways[...] = jnp.where(way < num_ways, way, NO_WAY)
