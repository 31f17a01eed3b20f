"""What must hold of every state, checked on the host."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .chunk_pool import read_frames
from .config import EmbeddingConfig
from .extent import frames_of_entries
from .page_table import NO_TABLE, buckets_of, read_keys
from .state import NULL_FRAME, EmbeddingState
from .table_rules import allowed_chunks
from .utility import MAX_UTILITY, PINNED, decode

__all__ = ["check_invariants"]


def check_invariants(state: EmbeddingState, config: EmbeddingConfig) -> None:
    """Check the invariants that `EmbeddingState` lists.

    Args:
      state: the state.
      config: what it was made for.

    Raises:
      ValueError: naming the broken invariant and the first place.
    """
    view = jax.device_get(_read(state, config))
    _check_frames(state, view, config)
    _check_keys(view, config)
    _check_utilities(state, view, config)
    if np.any(view.null_frames):
        raise ValueError(f"the null frames must hold zeros, hold {view.null_frames}")


class _View(NamedTuple):
    """What a state says, decoded; on the host, NumPy arrays."""

    keys: Any  # u32[M]
    tables: Any  # i32[M]
    home: Any  # i32[M], the bucket each key belongs to; None with `table_sizes`
    extent: Any  # [M]
    start: Any  # i32[M] or u16[M]
    frames: Any  # i32[M, K]
    allowed: Any  # i32[M], chunks that the table allows
    utility: Any  # f32[M, U]
    coarse: Any  # u8[M, Q], empty without coarse values
    null_frames: Any  # of f32[1, C]


@functools.partial(jax.jit, static_argnums=1)
def _read(state: EmbeddingState, config: EmbeddingConfig) -> Any:
    pages, entries = state.pages, jnp.arange(config.num_entries, dtype=jnp.int32)
    keys, tables = read_keys(pages, entries)
    null_frame = jnp.array([NULL_FRAME], jnp.int32)
    return _View(
        keys=keys,
        tables=tables,
        home=(
            buckets_of(keys, tables, config.num_buckets)
            if config.table_sizes is None
            else None
        ),
        extent=pages.extent,
        start=pages.start,
        frames=frames_of_entries(pages, entries, config),
        allowed=allowed_chunks(tables, config),
        utility=decode(pages.utility).reshape(-1, config.num_utilities),
        coarse=(
            jnp.zeros((config.num_entries, 0), jnp.uint8)
            if pages.coarse is None
            else pages.coarse.reshape(-1, config.coarse_dim)
        ),
        null_frames=[
            read_frames(pool, null_frame, config.chunk_dim)[0]
            for pool in (state.pool, state.shared)
            if pool is not None
        ],
    )


def _check_frames(state: EmbeddingState, view: _View, config: EmbeddingConfig) -> None:
    next_frame, idle = int(state.arena.next_frame), int(state.arena.idle)
    if not NULL_FRAME < next_frame <= config.num_frames:
        raise ValueError(
            f"next_frame must be in [1, {config.num_frames}], got {next_frame}"
        )
    start, extent = view.start, view.extent
    bad = (start == NULL_FRAME) != (extent == 0)
    if np.any(bad):
        entry = int(np.argmax(bad))
        raise ValueError(
            "an entry must have a run if and only if it has chunks; entry "
            f"{entry} has start {start[entry]} and extent {extent[entry]}"
        )
    largest = config.num_chunks
    if config.ranking == "chunks":
        largest = (1 << config.num_chunks) - 1
    if np.any(extent > largest):
        entry = int(np.argmax(extent > largest))
        raise ValueError(
            f"extents must be at most {largest}, entry {entry} has {extent[entry]}"
        )
    beyond = view.frames != NULL_FRAME
    beyond &= np.arange(config.num_chunks) >= view.allowed[:, None]
    if np.any(beyond):
        entry = int(np.argmax(beyond.any(axis=1)))
        raise ValueError(
            f"entries of table {view.tables[entry]} must have at most its "
            f"{view.allowed[entry]} chunks, entry {entry} has extent {extent[entry]}"
        )
    owned = view.frames[view.frames != NULL_FRAME]
    bad = owned[(owned < 0) | (owned >= next_frame)]
    if bad.size:
        raise ValueError(f"frames must be in [1, {next_frame}), got {bad[0]}")
    uses = np.bincount(owned, minlength=next_frame)
    if np.any(uses > 1):
        frame = int(np.argmax(uses > 1))
        raise ValueError(
            f"every frame must have at most one owner; frame {frame} has {uses[frame]}"
        )
    num_idle = int(np.count_nonzero(uses[1:] == 0))
    if num_idle != idle:
        raise ValueError(
            f"idle must count the frames without an owner, {num_idle}; got {idle}"
        )


def _check_keys(view: _View, config: EmbeddingConfig) -> None:
    table = view.tables
    bad = table >= config.num_tables
    if np.any(bad):
        entry = int(np.argmax(bad))
        raise ValueError(
            f"tables must be in [0, {config.num_tables}), entry {entry} "
            f"has {table[entry]}"
        )
    tracked = table != NO_TABLE
    words = np.stack([*view.keys, table], axis=1)
    distinct, counts = np.unique(words[tracked], axis=0, return_counts=True)
    if np.any(counts > 1):
        low, high, owner = distinct[np.argmax(counts)]
        raise ValueError(
            f"no key may be tracked twice; id words ({low}, {high}) of table "
            f"{owner} are"
        )
    if view.home is None:  # entries are of rows, which says what their keys are
        return
    astray = tracked & (view.home != np.arange(len(table)) // config.num_ways)
    if np.any(astray):
        entry = int(np.argmax(astray))
        raise ValueError(
            f"a key must lie in the bucket it hashes to; entry {entry} belongs to "
            f"bucket {view.home[entry]}"
        )


def _check_utilities(
    state: EmbeddingState, view: _View, config: EmbeddingConfig
) -> None:
    utility, extent = view.utility, view.extent
    bad = view.tables == NO_TABLE
    bad &= (extent != 0) | (utility != 0).any(axis=1)
    if np.any(bad):
        entry = int(np.argmax(bad))
        raise ValueError(
            "a free entry must have no chunk and no utility, entry "
            f"{entry} has extent {extent[entry]} and utilities {utility[entry]}"
        )
    bad = ~((utility <= 2 * MAX_UTILITY) | (utility == PINNED)).all(axis=1)
    if np.any(bad):
        entry = int(np.argmax(bad))
        raise ValueError(
            f"utilities must be at most {MAX_UTILITY}, entry {entry} has "
            f"{utility[entry]}"
        )
    # An entry of a row keeps its coarse values.
    bad = (view.tables == NO_TABLE) & (view.coarse != 0).any(axis=1)
    if config.table_sizes is None and np.any(bad):
        entry = int(np.argmax(bad))
        raise ValueError(
            f"a free entry must have no coarse values, entry {entry} has "
            f"{view.coarse[entry]}"
        )
    if not float(state.threshold) >= 0:
        raise ValueError(f"threshold must be at least 0, got {state.threshold}")
    decayed_at, step = int(state.decayed_at), int(state.step)
    if not 0 <= decayed_at <= step:
        raise ValueError(f"decayed_at must be in [0, {step}], got {decayed_at}")
