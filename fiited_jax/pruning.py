"""The prune step: rank all tracked chunks and move frames from losers to winners."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .arena import frames_used
from .config import EmbeddingConfig
from .extent import (
    common_extent,
    extent_of,
    first_chunks,
    num_present,
    present_chunks,
)
from .page_table import all_tables
from .relocation import plan_layout, relocate
from .sparse_optim import SparseOptimizer
from .state import EmbeddingState, FrameArena, PageTable
from .table_rules import allowed_chunks
from .utility import (
    PINNED,
    Bounds,
    decay_factor,
    decode,
    encode,
    rounding_salt,
    select_top,
)
from .utility_scale import scale_by_p95

__all__ = ["PruneInfo", "choose_extents", "prune_step"]


class PruneInfo(NamedTuple):
    """What a prune step did; scalars.

    Attributes:
      threshold: `f32[]` the priority that all chosen chunks reach, moved or not; of
        utilities as they are stored, not divided by their `utility_scale`.
      freed: `i32[]` chunks that lost their frame.
      granted: `i32[]` chunks that got one.
      moved_share: `f32[]` the larger of both, as asked for, and of the idle frames,
        over the frames in use, at most the target.
      moved: `bool[]` false if everything stayed in place, by hysteresis or because
        nothing had to move.
      frames_used: `i32[]` frames owned by chunks afterwards.
    """

    threshold: jax.Array
    freed: jax.Array
    granted: jax.Array
    moved_share: jax.Array
    moved: jax.Array
    frames_used: jax.Array


def prune_step(
    state: EmbeddingState, config: EmbeddingConfig, optimizer: SparseOptimizer
) -> tuple[EmbeddingState, PruneInfo]:
    """Give the frames to the chunks of highest priority; see `EmbeddingStore`."""
    pages = state.pages
    extent, threshold = choose_extents(pages, config)
    kept = common_extent(extent, pages.extent, config)
    num_kept = jnp.sum(num_present(kept, config), dtype=jnp.int32)
    lost = frames_used(state.arena) - num_kept
    won = jnp.sum(num_present(extent, config), dtype=jnp.int32) - num_kept
    asked = jnp.maximum(jnp.maximum(lost, won), state.arena.idle)
    # Of what there is to move: a store that fills a part of its pool is not held back.
    base = jnp.clip(frames_used(state.arena), 1, config.target_frames)
    moved_share = asked.astype(jnp.float32) / base
    moves = (asked > 0) & (moved_share >= config.hysteresis)

    layout = plan_layout(pages, extent, config)
    pool = relocate(state, layout, config, optimizer, moves)
    arena = FrameArena(
        next_frame=jnp.where(moves, layout.next_frame, state.arena.next_frame),
        idle=jnp.where(moves, 0, state.arena.idle),
    )
    decay = decay_factor(state.step - state.decayed_at, config.half_life)
    new_pages = dataclasses.replace(
        pages,
        extent=jnp.where(moves, extent, pages.extent),
        start=jnp.where(moves, layout.start.astype(pages.start.dtype), pages.start),
        utility=_decayed(pages.utility, decay, state.step),
    )
    new_state = dataclasses.replace(
        state,
        decayed_at=state.step,
        threshold=threshold * decay,
        pages=new_pages,
        pool=pool,
        arena=arena,
    )
    info = PruneInfo(
        threshold=new_state.threshold,
        freed=jnp.where(moves, lost, 0),
        granted=jnp.where(moves, won, 0),
        moved_share=moved_share,
        moved=moves,
        frames_used=frames_used(arena),
    )
    return new_state, info


def choose_extents(
    pages: PageTable, config: EmbeddingConfig
) -> tuple[jax.Array, jax.Array]:
    """Choose the chunks that shall have a frame.

    Args:
      pages: the page table.
      config: sizes and rules.

    Returns:
      `[M]` extents, and `f32[]` the priority that all chosen chunks reach, pinned ones
      apart.
    """
    owned = num_present(pages.extent, config)
    if config.ranking == "chunks":  # a candidate for itself
        owned = present_chunks(pages.extent, config).reshape(-1).astype(jnp.int32)
    ranked = pages
    if config.utility_scale == "p95":
        tables = jnp.repeat(all_tables(pages), config.num_utilities)
        codes = scale_by_p95(pages.utility, tables, config.num_tables)
        ranked = dataclasses.replace(pages, utility=codes)
    if config.table_dims is None and config.table_floors is None:
        count, threshold = select_top(
            ranked.utility, owned, config.priority_weights, config.target_frames
        )
    else:
        count, threshold = _select_by_table(ranked, owned, config)
    if config.utility_scale == "p95":
        threshold = _lowest_chosen(pages.utility, count, threshold, config)
    if config.ranking == "chunks":
        return extent_of(count.reshape(-1, config.num_chunks) > 0, config), threshold
    return first_chunks(count, config), threshold


def _select_by_table(
    pages: PageTable, owned: jax.Array, config: EmbeddingConfig
) -> tuple[jax.Array, jax.Array]:
    """Choose as `select_top` does, within the rules of the tables.

    Pinned keys come first. Then every table gets the best of its own, up to its floor,
    and all compete for what is left. The threshold is the lowest of these choices.
    """
    tables = all_tables(pages)
    limit = allowed_chunks(tables, config)
    if config.ranking == "chunks":
        chunks = lax.iota(jnp.int32, config.num_chunks)[None, :]
        limit = (chunks < limit[:, None]).reshape(-1).astype(jnp.int32)
        tables = jnp.repeat(tables, config.num_chunks)
    owned = jnp.minimum(owned, limit)

    def choose(chosen: jax.Array, frames: int | jax.Array, among: jax.Array) -> Any:
        """Choose up to `frames` more, from elements `among`."""
        last = jnp.where(among, limit, chosen)
        bounds = Bounds(chosen, last)
        weights = config.priority_weights
        count, threshold = select_top(pages.utility, owned, weights, frames, bounds)
        return chosen + count, threshold

    def left(chosen: jax.Array) -> jax.Array:
        return config.target_frames - jnp.sum(chosen, dtype=jnp.int32)

    def fill_floor(chosen: jax.Array, rule: tuple[jax.Array, jax.Array]) -> Any:
        table, floor = rule
        is_own = tables == table
        held = jnp.sum(jnp.where(is_own, chosen, 0), dtype=jnp.int32)
        frames = jnp.clip(floor - held, 0, left(chosen))
        return choose(chosen, frames, is_own)

    chosen, threshold = jnp.zeros_like(limit), jnp.float32(PINNED)
    rules = [rule for rule in enumerate(config.floor_frames) if rule[1]]
    if rules:
        is_pinned = decode(pages.utility) == PINNED
        chosen, _ = choose(chosen, config.target_frames, is_pinned)
        columns = jnp.asarray(rules, jnp.int32).T
        chosen, thresholds = lax.scan(fill_floor, chosen, (columns[0], columns[1]))
        threshold = jnp.min(thresholds)
    chosen, of_all = choose(chosen, left(chosen), jnp.ones_like(limit, bool))
    return chosen, jnp.minimum(threshold, of_all)


def _lowest_chosen(
    codes: jax.Array, count: jax.Array, threshold: jax.Array, config: EmbeddingConfig
) -> jax.Array:
    """Find the lowest priority that was chosen, `f32[]`, of utilities not scaled.

    Args:
      codes: `u16[M * U]` the utilities as they are stored.
      count: `i32[M * U]` how many chunks of each were chosen.
      threshold: `f32[]` of the ranking; 0 says that frames are left over.
      config: sizes and rules.
    """
    weights = jnp.asarray(config.priority_weights, jnp.float32)
    priority = decode(codes) * weights[jnp.maximum(count - 1, 0)]
    lowest = jnp.min(jnp.where(count > 0, priority, PINNED))
    return jnp.where(threshold > 0, lowest, 0.0)


def _decayed(codes: jax.Array, factor: jax.Array, step: jax.Array) -> jax.Array:
    """Scale all utilities, `u16[M * U]`."""
    salt = rounding_salt(step, lax.iota(jnp.int32, codes.size), purpose=1)
    return encode(decode(codes) * factor, salt)
