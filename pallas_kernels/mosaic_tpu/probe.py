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

__all__ = ["probe_and_load"]

_PIECE_BYTES = 512  # the least that is copied from a flat array, of any dtype


def probe_and_load(
    words: Arrays,
    queries: Arrays,
    buckets: jax.Array,
    num_ways: int,
    columns: Arrays,
    *,
    interpret: Any = False,
) -> tuple[jax.Array, Arrays]:
    """Find each query in its bucket; see `pallas_kernels.api.probe_and_load`.

    Args:
      words: each `[num_buckets * W]` flat, integers, a multiple of 512 bytes.
      queries: each `[...]`, one per word.
      buckets: `i32[...]`, all in range.
      num_ways: W, a divisor of 128.
      columns: each like a word.
      interpret: as for `pl.pallas_call`.

    Returns:
      `i32[...]` ways, and per column what is loaded.

    Raises:
      NotImplementedError: on another W, and on other words or columns.
    """
    if LANES % num_ways:
        raise NotImplementedError(
            f"implementation='mosaic_tpu' needs a num_ways that divides {LANES}, got "
            f"{num_ways}"
        )
    held = (*words, *columns)
    for one in held:
        _check_word(one)
    dtypes = [jnp.dtype(jnp.int32), *(column.dtype for column in columns)]
    num_blocks = -(-buckets.size // LANES)
    if not num_blocks:
        ways, *loaded = (jnp.zeros(buckets.shape, dtype) for dtype in dtypes)
        return ways, tuple(loaded)
    behind = num_blocks * LANES - buckets.size
    scalars, *rows = (
        jnp.pad(row.reshape(-1).astype(jnp.int32), (0, behind))
        for row in (buckets, buckets, *queries)
    )
    of_block = pl.BlockSpec((None, 1, LANES), lambda block: (block, 0, 0))
    out = jax.ShapeDtypeStruct((num_blocks, 1, LANES), jnp.int32)
    outs = pl.pallas_call(
        functools.partial(
            _probe_block,
            num_words=len(words),
            num_columns=len(columns),
            num_ways=num_ways,
        ),
        out_shape=[out] * len(dtypes),
        grid=(num_blocks,),
        in_specs=[
            pl.BlockSpec((LANES,), lambda block: (block,), memory_space=pltpu.SMEM),
            *[of_block] * len(rows),
            *[pl.BlockSpec(memory_space=pl.ANY)] * len(held),
        ],
        out_specs=[of_block] * len(dtypes),
        scratch_shapes=[
            *(pltpu.VMEM((LANES * _piece(one),), one.dtype) for one in held),
            pltpu.SemaphoreType.DMA((len(held),)),
        ],
        interpret=interpret,
        name="probe_page_table",
    )(scalars, *(row.reshape(num_blocks, 1, LANES) for row in rows), *held)
    ways, *loaded = (
        one.reshape(-1)[: buckets.size].reshape(buckets.shape).astype(dtype)
        for one, dtype in zip(outs, dtypes, strict=True)
    )
    return ways, tuple(loaded)


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
    scalars: Any,
    buckets: Any,
    *refs: Any,
    num_words: int,
    num_columns: int,
    num_ways: int,
) -> None:
    """Probe for 128 queries, one per lane.

    Args:
      scalars: `i32[128]`, the buckets.
      buckets: `i32[1, 128]`, the same, in lanes.
      *refs: per word its queries `i32[1, 128]`; the words, then the columns, in the
        memory of the chip; the ways `i32[1, 128]` and per column what it holds, to be
        written; per word and column `[128 * n]` of its dtype, where pieces of n values
        arrive; a semaphore for each.
      num_words: of a key.
      num_columns: that are loaded.
      num_ways: W.
    """
    num_held = num_words + num_columns
    queries, refs = refs[:num_words], refs[num_words:]
    held, (ways, *rest) = refs[:num_held], refs[num_held:]
    loaded, (*landings, arrivals) = rest[:num_columns], rest[num_columns:]

    def copies_of(row: Any) -> list[Any]:
        entry = scalars[row] * num_ways
        copies = []
        for number, (one, landing) in enumerate(zip(held, landings, strict=True)):
            piece = _piece(one)
            source = pl.ds(pl.multiple_of(entry // piece * piece, piece), piece)
            target = pl.ds(pl.multiple_of(row * piece, piece), piece)
            copies.append(
                pltpu.make_async_copy(
                    one.at[source], landing.at[target], arrivals.at[number]
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
    entries = buckets[...] * num_ways

    def around(landing: Any) -> jax.Array:
        """Lay the 128 entries around a query's bucket down its lane."""
        piece = _piece(landing)
        pieces = landing[...].astype(jnp.int32).reshape(LANES, piece)
        chosen = pieces[:, :LANES].T
        for part in range(1, piece // LANES):
            others = pieces[:, part * LANES : (part + 1) * LANES].T
            chosen = jnp.where(entries % piece // LANES == part, others, chosen)
        return chosen

    places = lax.broadcasted_iota(jnp.int32, (LANES, LANES), 0)
    matches = places // num_ways == entries % LANES // num_ways
    for query, landing in zip(queries, landings[:num_words], strict=True):
        matches &= around(landing) == query[...]
    way = jnp.where(matches, places % num_ways, num_ways)
    way = jnp.min(way, axis=0, keepdims=True)
    ways[...] = jnp.where(way < num_ways, way, NO_WAY)
    is_found = matches & (places % num_ways == way)
    for out, landing in zip(loaded, landings[num_words:], strict=True):
        out[...] = jnp.sum(
            jnp.where(is_found, around(landing), 0), axis=0, keepdims=True
        )
