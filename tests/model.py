"""The store's rules in plain Python: dictionaries, lists and loops.

Works lane by lane where the store works on arrays. What floating point may round
differently (utilities, values) is compared by tolerance and then taken over from the
store, so that every later decision is made on the same bits. Where frames lie is the
store's own business: the model knows chunks by key and number.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fiited_jax.chunk_pool import initial_values
from fiited_jax.doorkeeper import slots_and_tags
from fiited_jax.keys import Keys
from fiited_jax.page_table import buckets_of, read_keys
from fiited_jax.precision import from_stored, round_nearest
from fiited_jax.row_numbers import entries_of_rows
from fiited_jax.shared_pool import shared_frames
from helpers import tolerance

LANES = 64  # the most terms of a sum in these tests


@dataclasses.dataclass
class Entry:
    """A tracked key."""

    key: tuple[int, int, int]  # low, high, table
    chunks: dict[int, np.ndarray]  # the chunks that have a frame: f32[C]
    utility: np.ndarray  # f32[U]


@functools.partial(jax.jit, static_argnums=3)
def _hash(keys, tables, seed, config):
    """Buckets, slots and tags `i32[n]` and initial values `f32[n, K, C]` of keys."""
    chunks = jnp.arange(config.num_chunks, dtype=jnp.int32)

    def initial(chunk):
        return initial_values(
            seed,
            keys,
            tables,
            jnp.full(tables.shape, chunk),
            config.chunk_dim,
            config.initial_scale,
        )

    if config.table_sizes is None:
        where = buckets_of(keys, tables, config.num_buckets)
    else:
        where = entries_of_rows(keys.low, tables, config.table_sizes)
    slots, tags = slots_and_tags(keys, tables, max(config.filter_slots, 1))
    vectors = jnp.zeros_like(tables)
    if config.num_shared:
        vectors = (shared_frames(keys, tables, vectors, config) - 1) // len(chunks)
    values = jax.vmap(initial, out_axes=1)(chunks)
    if config.value_dtype == "bfloat16":
        values = round_nearest(values)
    return where, vectors, slots, tags, values


class Model:
    """What an `EmbeddingStore` with SGD and the frequency scorer should do."""

    def __init__(self, config, seed, learning_rate, shared=None):
        self.config, self.seed, self.learning_rate = config, seed, learning_rate
        self.has_rows = config.table_sizes is not None
        self.num_ways = 1 if self.has_rows else config.num_ways
        self.step = self.decayed_at = 0
        self.ways = [None] * config.num_entries
        self.unused = config.num_frames - 1  # frames never handed out since a move
        self.idle = 0
        self.buckets, self.tags, self.fresh, self.vector_of = {}, {}, {}, {}
        self.shared = shared  # f32[num_shared, K, C] or None
        self.threshold = 0.0
        self.remembered = {}  # slot of the filter -> tag

    def prepare(self, keys):
        """Hash what is new: the one thing that is not worked out by hand."""
        new = sorted(set(keys) - self.buckets.keys())
        if not new:
            return
        size = 1 << (len(new) - 1).bit_length()  # few shapes, few compilations
        words = np.array((new * size)[:size], np.uint64)
        low, high, table = (words[:, i].astype(np.uint32) for i in range(3))
        where, vectors, slots, tags, values = jax.device_get(
            _hash(Keys(low, high), table.astype(np.int32), self.seed, self.config)
        )
        for key, chunks in zip(new, values, strict=False):
            for chunk, value in enumerate(chunks):
                self.fresh[key, chunk] = value
        self.vector_of.update(zip(new, vectors.tolist(), strict=False))
        self.tags.update(zip(new, np.stack([slots, tags], 1).tolist(), strict=False))
        self.buckets.update(zip(new, where.tolist(), strict=False))

    def find(self, key):
        """The entry number of a key, or -1."""
        if self.is_too_wide(key):
            return -1
        first = self.buckets[key] * self.num_ways
        for entry in range(first, first + self.num_ways):
            held = self.ways[entry]
            if held is not None and held.key == key and not self.is_empty(held):
                return entry
        return -1

    def is_empty(self, entry):
        """Whether a row is as if it had never come."""
        return self.has_rows and not entry.chunks and not entry.utility.any()

    def is_too_wide(self, key):
        low, high, table = key
        if self.has_rows:
            return high != 0 or low >= self.config.table_sizes[table]
        return self.config.id_bits == 32 and high != 0

    def allowed(self, key):
        """How many chunks the table of a key allows."""
        return self.config.dim_of(key[2]) // self.config.chunk_dim

    def give(self, entry, chunk):
        source = self.fresh.get((entry.key, chunk))
        if self.shared is not None:
            source = self.shared[self.vector_of[entry.key], chunk]
        entry.chunks[chunk] = source.copy()

    def admit(self, lanes):
        """`lanes`: keys, or None for padding. Returns entries and counters."""
        self.prepare([key for key in lanes if key is not None])
        too_wide = sum(key is not None and self.is_too_wide(key) for key in lanes)
        lanes = [None if key is None or self.is_too_wide(key) else key for key in lanes]
        entries = [-1 if key is None else self.find(key) for key in lanes]
        counts = {
            "hits": sum(entry >= 0 for entry in entries),
            "misses": sum(
                key is not None and entry < 0
                for key, entry in zip(lanes, entries, strict=True)
            ),
        }
        unknown = self.unknown(
            {key for key, entry in zip(lanes, entries, strict=True) if entry < 0}
        )
        taken, placed, evicted = set(entries), {}, []
        self.is_out = False
        for lane, key in enumerate(lanes):
            if key is None or entries[lane] >= 0:
                continue
            if key not in placed:
                placed[key] = self.choose(key, taken, key in unknown)
                taken.add(placed[key])
            entries[lane] = placed[key]
        new = [(key, entry) for key, entry in placed.items() if entry >= 0]
        for key, index in new:
            old = self.ways[index]
            if old is not None and not self.has_rows:
                evicted.append(old.key)
            self.ways[index] = self.settle(key, 0 if old is None else len(old.chunks))
        counts["admitted"], counts["evicted"] = len(new), len(evicted)
        counts["failed"] = too_wide + sum(
            key is not None and entry < 0 and key not in unknown
            for key, entry in zip(lanes, entries, strict=True)
        )
        counts["filtered"] = sum(
            entry < 0 and key in unknown
            for key, entry in zip(lanes, entries, strict=True)
        )
        return entries, counts, evicted

    def unknown(self, keys):
        """The keys that the filter has not seen; it remembers them."""
        if not self.config.filter_slots:
            return set()
        new, last = set(), {}
        for key in keys - {None}:
            slot, tag = self.tags[key]
            if self.remembered.get(slot) != tag:
                new.add(key)
                last[slot] = max(tag, last.get(slot, 0))
        self.remembered |= last
        return new

    def settle(self, key, num_left):
        """A new entry; its predecessor leaves `num_left` frames."""
        wanted = min(self.config.initial_chunks, self.allowed(key))
        count = min(num_left, wanted)
        if num_left < wanted and wanted > self.unused:
            self.is_out = True  # what is left is for the next batch
        if num_left < wanted and not self.is_out:
            self.unused -= wanted
            self.idle += num_left
            count = wanted
        else:
            self.idle += num_left - count
        utility = np.zeros(self.config.num_utilities, np.float32)
        entry = Entry(key, {}, utility)
        for chunk in range(count):
            self.give(entry, chunk)
        return entry

    def choose(self, key, taken, is_unknown):
        """The way a new key takes: free, else the coldest not in use, else none."""
        first = self.buckets[key] * self.num_ways
        if self.has_rows:
            return first
        best, lowest = -1, np.inf
        if is_unknown:
            weights = self.config.priority_weights
            place = min(self.config.initial_chunks, len(weights) - 1)
            lowest = np.float32(self.threshold) / np.float32(weights[place])
        for index in range(first, first + self.num_ways):
            entry = self.ways[index]
            if index in taken:
                continue
            if entry is None:
                return index
            if entry.utility.max() < lowest:
                best, lowest = index, entry.utility.max()
        return best

    def lookup(self, lanes):
        """Vectors, zeros where a chunk is absent."""
        config = self.config
        out = np.zeros((len(lanes), config.num_chunks, config.chunk_dim), np.float32)
        self.prepare([key for key in lanes if key is not None])
        for lane, key in enumerate(lanes):
            index = -1 if key is None else self.find(key)
            if key is not None and self.shared is not None:
                own = slice(self.allowed(key))
                out[lane, own] = self.shared[self.vector_of[key], own]
            if index >= 0:
                for chunk, values in self.ways[index].chunks.items():
                    out[lane, chunk] = values
        return out.reshape(len(lanes), -1)

    def apply(self, lanes, entries, grads):
        """`entries`: as the handle had them; `grads`: `[n, K, C]`."""
        config = self.config
        self.step += 1
        counts = {"updated": 0, "stale": 0, "non_finite": 0}
        growth = 2.0 ** min((self.step - self.decayed_at) / config.half_life, 64)
        groups, shared_grads = {}, {}
        for lane, (key, index) in enumerate(zip(lanes, entries, strict=True)):
            if key is None:
                continue
            is_tracked = index >= 0
            if is_tracked and (self.ways[index] is None or self.ways[index].key != key):
                counts["stale"] += 1
                continue
            own = self.ways[index].chunks if is_tracked else {}
            for chunk in set(range(self.allowed(key))) - set(own):
                place = self.vector_of[key], chunk
                shared_grads.setdefault(place, []).append(grads[lane, chunk])
            if not is_tracked:
                continue
            groups.setdefault(index, []).append(lane)
        for index, members in groups.items():
            entry = self.ways[index]
            sound = np.ones(config.num_chunks, bool)
            for chunk in range(config.num_chunks):
                grad = grads[members, chunk].sum(axis=0, dtype=np.float32)
                if chunk >= self.allowed(entry.key):
                    continue
                if not np.all(np.isfinite(grad)):
                    counts["non_finite"] += 1
                    sound[chunk] = False
                elif chunk in entry.chunks:
                    counts["updated"] += 1
                    entry.chunks[chunk] -= np.float32(self.learning_rate) * grad
            scores = sound.reshape(config.num_utilities, -1).all(axis=1)
            entry.utility[scores] += len(members) * growth
        if self.shared is not None:
            for (vector, chunk), terms in shared_grads.items():
                grad = np.sum(terms, axis=0, dtype=np.float32)
                if np.all(np.isfinite(grad)):
                    self.shared[vector, chunk] -= np.float32(self.learning_rate) * grad
                else:
                    counts["non_finite"] += 1
        return counts

    def units(self):
        """What utilities are divided by before they compete, by table."""
        if self.config.utility_scale == "none":
            return {}
        of_table = {}
        for entry in self.ways:
            if entry is not None:
                worth = entry.utility[entry.utility > 0].tolist()
                of_table.setdefault(entry.key[2], []).extend(worth)
        return {
            table: np.float32(sorted(worth)[-(len(worth) // 20) - 1])
            for table, worth in of_table.items()
            if worth
        }

    def prune(self):
        """Rank every chunk with a sorted list."""
        config = self.config
        weights, units = np.float32(config.priority_weights), self.units()
        chunks = []
        for index, entry in enumerate(self.ways):
            if entry is not None:
                worth = entry.utility
                if entry.key[2] in units:
                    bits = (worth / units[entry.key[2]]).view(np.uint32)
                    worth = (bits >> 15 << 15).view(np.float32)
                worth = worth * weights
                for chunk in range(self.allowed(entry.key)):
                    has = chunk in entry.chunks
                    if has or worth[chunk] > 0:
                        chunks.append((-worth[chunk], index, chunk, has))
        chunks.sort()
        chosen, reached = self.chosen(chunks)
        if config.utility_scale == "p95" and reached > 0:
            reached = min(self.worth(*chunk[1:3]) for chunk in chosen)
        winners = [chunk[1:3] for chunk in chunks if not chunk[3] and chunk in chosen]
        losers = [chunk[1:3] for chunk in chunks if chunk[3] and chunk not in chosen]
        asked = max(len(winners), len(losers), self.idle)
        used = sum(len(entry.chunks) for entry in self.ways if entry is not None)
        base = np.float32(min(max(used, 1), config.target_frames))
        share = np.float32(asked) / base
        moves = asked > 0 and share >= np.float32(config.hysteresis)
        age = (self.step - self.decayed_at) / config.half_life
        for entry in self.ways:
            if entry is not None:
                entry.utility *= np.float32(2.0 ** -min(age, 64))
        self.threshold = reached * 2.0 ** -min(age, 64)
        self.decayed_at = self.step
        if not moves:
            return 0, 0
        for index, chunk in losers:
            del self.ways[index].chunks[chunk]
        for index, chunk in winners:
            self.give(self.ways[index], chunk)
        in_use = sum(len(entry.chunks) for entry in self.ways if entry is not None)
        self.idle, self.unused = 0, config.num_frames - 1 - in_use
        return len(losers), len(winners)

    def worth(self, index, chunk):
        """The priority of a chunk, not scaled."""
        utility = self.ways[index].utility
        part = chunk * len(utility) // self.config.num_chunks
        place = min(chunk, len(self.config.priority_weights) - 1)
        return utility[part] * np.float32(self.config.priority_weights[place])

    def chosen(self, chunks):
        """The ranked chunks that shall have a frame, and the priority they reach."""
        chosen, reached = set(), np.inf

        def add(own, frames):
            """Choose up to so many more; return the priority they reach."""
            frames = min(frames, self.config.target_frames - len(chosen))
            own = [chunk for chunk in own if chunk not in chosen]
            chosen.update(own[: max(frames, 0)])
            if frames <= 0:
                return np.inf
            return -own[frames - 1][0] if len(own) >= frames else 0.0

        for table, floor in enumerate(self.config.floor_frames):
            own = [chunk for chunk in chunks if self.ways[chunk[1]].key[2] == table]
            if floor:
                reached = min(reached, add(own, floor))
        return chosen, min(reached, add(chunks, self.config.target_frames))

    def compare(self, state):
        """Integers and structure exactly; utilities and values closely, then taken."""
        config = self.config
        assert int(state.step) == self.step
        assert int(state.decayed_at) == self.decayed_at
        assert int(state.arena.next_frame) == config.num_frames - self.unused
        assert int(state.arena.idle) == self.idle
        np.testing.assert_allclose(state.threshold, self.threshold, rtol=2.0**-8)
        self.threshold = float(state.threshold)
        pages = jax.tree.map(np.asarray, state.pages)
        keys, tables = read_keys(state.pages, jnp.arange(config.num_entries))
        words = [np.asarray(word).tolist() for word in (*keys, tables)]
        bits = pages.utility.astype(np.uint32) << 15
        utility = bits.view(np.float32).reshape(-1, config.num_utilities)
        values = np.asarray(from_stored(state.pool.values)).reshape(-1)
        near = tolerance(LANES, config.value_dtype)
        if self.shared is not None:
            got = np.asarray(from_stored(state.shared.values)).reshape(-1)
            got = got[config.chunk_dim :][: self.shared.size]
            got = got.reshape(self.shared.shape)
            np.testing.assert_allclose(got, self.shared, **near)
            self.shared = got.copy()
        near_utility, near_values = [], []  # pairs, compared at once
        for index, entry in enumerate(self.ways):
            if entry is not None:  # what is next to nothing may be flushed to zero
                is_tiny = entry.utility < 1e-30
                entry.utility[is_tiny] = utility[index][is_tiny]
            if entry is None or self.is_empty(entry):
                assert words[2][index] == -1
                continue
            assert tuple(word[index] for word in words) == entry.key
            extent = int(pages.extent[index])
            mask = extent if config.ranking == "chunks" else (1 << extent) - 1
            present = [j for j in range(config.num_chunks) if mask >> j & 1]
            assert present == sorted(entry.chunks)
            near_utility.append((utility[index].copy(), entry.utility))
            entry.utility = utility[index].copy()
            for rank, chunk in enumerate(present):
                start = (int(pages.start[index]) + rank) * config.chunk_dim
                got = values[start : start + config.chunk_dim]
                near_values.append((got.copy(), entry.chunks[chunk]))
                entry.chunks[chunk] = got.copy()
        for pairs, bound in ((near_utility, {"rtol": 2.0**-8}), (near_values, near)):
            if pairs:
                got, expected = (
                    np.concatenate(side) for side in zip(*pairs, strict=True)
                )
                np.testing.assert_allclose(got, expected, **bound)
