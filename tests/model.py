"""The store's rules in plain Python: dictionaries, lists and loops.

Works lane by lane where the store works on arrays. What floating point may round
differently (utilities, values) is compared by tolerance and then taken over from the
store, so that every later decision is made on the same bits.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fiited_jax.chunk_pool import initial_values
from fiited_jax.keys import Keys
from fiited_jax.page_table import buckets_of
from fiited_jax.utility import decay
from helpers import tolerance


@dataclasses.dataclass
class Entry:
    """A tracked key."""

    key: tuple[int, int, int]  # low, high, table
    last_step: int
    frames: list[int]
    utility: np.ndarray  # f32[K]


class Model:
    """What an `EmbeddingStore` with SGD and the frequency scorer should do."""

    def __init__(self, config, seed, learning_rate):
        self.config, self.seed, self.learning_rate = config, seed, learning_rate
        self.step = 0
        self.ways = [None] * config.num_entries
        self.free = list(range(config.num_frames - 1, 0, -1))
        self.values = {}  # frame -> f32[C]
        self.buckets, self.fresh = {}, {}
        ages = np.arange(1 << 12, dtype=np.int32)
        # Jitted as the store is: fused, the same expression rounds differently.
        factor = jax.jit(decay, static_argnums=2)
        self.factor = np.asarray(
            factor(jnp.ones(ages.shape), jnp.asarray(ages), config.half_life)
        )

    def prepare(self, keys):
        """Hash what is new: the one thing that is not worked out by hand."""
        new = sorted(set(keys) - self.buckets.keys())
        if not new:
            return
        size = 1 << (len(new) - 1).bit_length()  # few shapes, few compilations
        words = np.array((new * size)[:size], np.uint64)
        low, high, table = (words[:, i].astype(np.uint32) for i in range(3))
        table = table.astype(np.int32)
        where = buckets_of(
            Keys(jnp.asarray(low), jnp.asarray(high)),
            jnp.asarray(table),
            self.config.num_buckets,
        )
        for chunk in range(self.config.num_chunks):
            values = initial_values(
                self.seed,
                Keys(jnp.asarray(low), jnp.asarray(high)),
                jnp.asarray(table),
                jnp.full(size, chunk, jnp.int32),
                self.config.chunk_dim,
                self.config.initial_scale,
            )
            for key, value in zip(new, np.asarray(values), strict=False):
                self.fresh[key, chunk] = value
        self.buckets.update(zip(new, np.asarray(where).tolist(), strict=False))

    def find(self, key):
        """The entry number of a key, or -1."""
        first = self.buckets[key] * self.config.num_ways
        for entry in range(first, first + self.config.num_ways):
            if self.ways[entry] is not None and self.ways[entry].key == key:
                return entry
        return -1

    def current(self, entry, step):
        """Utilities decayed to a step."""
        age = max(step - entry.last_step, 0)
        return entry.utility * self.factor[age]

    def hand_out(self, frame, key, chunk):
        self.values[frame] = self.fresh[key, chunk].copy()

    def admit(self, lanes):
        """`lanes`: keys, or None for padding. Returns entries and counters."""
        config, now = self.config, self.step + 1
        self.prepare([key for key in lanes if key is not None])
        entries = [-1 if key is None else self.find(key) for key in lanes]
        counts = {
            "hits": sum(entry >= 0 for entry in entries),
            "misses": sum(
                key is not None and entry < 0
                for key, entry in zip(lanes, entries, strict=True)
            ),
        }
        for index in set(entries) - {-1}:
            entry = self.ways[index]
            entry.utility, entry.last_step = self.current(entry, now), now
        taken, placed, evicted = set(), {}, []
        for lane, key in enumerate(lanes):
            if key is None or entries[lane] >= 0:
                continue
            if key not in placed:
                choice = self.choose(key, now, taken)
                placed[key] = choice
                taken.add(choice)
            entries[lane] = placed[key]
        new = [(key, entry) for key, entry in placed.items() if entry >= 0]
        for _, index in new:
            old = self.ways[index]
            if old is not None:
                evicted.append(old.key)
                self.free.extend(frame for frame in old.frames if frame)
        for key, index in new:
            frames = [0] * config.num_chunks
            for chunk in range(config.initial_chunks):
                if self.free:
                    frames[chunk] = self.free.pop()
                    self.hand_out(frames[chunk], key, chunk)
            zeros = np.zeros(config.num_chunks, np.float32)
            self.ways[index] = Entry(key, now, frames, zeros)
        counts["admitted"], counts["evicted"] = len(new), len(evicted)
        counts["failed"] = sum(
            key is not None and entry < 0
            for key, entry in zip(lanes, entries, strict=True)
        )
        return entries, counts, evicted

    def choose(self, key, now, taken):
        """The way a new key takes: empty, else the coldest not in use, else none."""
        first = self.buckets[key] * self.config.num_ways
        best, lowest = -1, np.inf
        for index in range(first, first + self.config.num_ways):
            entry = self.ways[index]
            if index in taken:
                continue
            if entry is None:
                return index
            if entry.last_step == now:
                continue
            worth = self.current(entry, now).max()
            if worth < lowest:
                best, lowest = index, worth
        return best

    def lookup(self, lanes):
        """Vectors, zeros where a chunk is absent."""
        config = self.config
        out = np.zeros((len(lanes), config.num_chunks, config.chunk_dim), np.float32)
        self.prepare([key for key in lanes if key is not None])
        for lane, key in enumerate(lanes):
            index = -1 if key is None else self.find(key)
            if index >= 0:
                for chunk, frame in enumerate(self.ways[index].frames):
                    if frame:
                        out[lane, chunk] = self.values[frame]
        return out.reshape(len(lanes), -1)

    def apply(self, lanes, entries, frames, grads):
        """`frames`, `entries`: as the handle had them; `grads`: `[n, K, C]`."""
        self.step += 1
        counts = {"updated": 0, "stale": 0, "non_finite": 0}
        groups = {}
        for lane, (key, index) in enumerate(zip(lanes, entries, strict=True)):
            if index < 0:
                continue
            entry = self.ways[index]
            if entry is None or entry.key != key:
                counts["stale"] += 1
                continue
            if list(frames[lane]) != entry.frames:
                counts["stale"] += 1
            groups.setdefault(index, []).append(lane)
        for index, members in groups.items():
            entry = self.ways[index]
            entry.utility = self.current(entry, self.step)
            entry.last_step = self.step
            for chunk, frame in enumerate(entry.frames):
                if frames[members[0]][chunk] != frame:
                    continue
                grad = grads[members, chunk].sum(axis=0, dtype=np.float32)
                if not np.all(np.isfinite(grad)):
                    counts["non_finite"] += 1
                    continue
                entry.utility[chunk] += len(members)
                if frame:
                    counts["updated"] += 1
                    self.values[frame] -= np.float32(self.learning_rate) * grad
        return counts

    def prune(self):
        """Rank every chunk with a sorted list."""
        config = self.config
        chunks = []
        for index, entry in enumerate(self.ways):
            if entry is not None:
                worth = self.current(entry, self.step)
                for chunk, frame in enumerate(entry.frames):
                    if frame or worth[chunk] > 0:
                        place = index * config.num_chunks + chunk
                        chunks.append((-worth[chunk], place, frame != 0))
        chunks.sort()
        target = config.target_frames
        winners = sorted(place for _, place, has in chunks[:target] if not has)
        losers = sorted(place for _, place, has in chunks[target:] if has)
        share = np.float32(max(len(winners), len(losers))) / np.float32(target)
        if share < np.float32(config.hysteresis):
            return 0, 0
        for place in losers:
            frames = self.ways[place // config.num_chunks].frames
            self.free.append(frames[place % config.num_chunks])
            frames[place % config.num_chunks] = 0
        for place in winners:
            entry, chunk = self.ways[place // config.num_chunks], place
            chunk %= config.num_chunks
            entry.frames[chunk] = self.free.pop()
            self.hand_out(entry.frames[chunk], entry.key, chunk)
        return len(losers), len(winners)

    def compare(self, state):
        """Integers and structure exactly; utilities and values closely, then taken."""
        config = self.config
        assert int(state.step) == self.step
        count = int(state.free.count)
        assert np.asarray(state.free.frames)[:count].tolist() == self.free
        low, high, table, last_step = (
            np.asarray(word).tolist()
            for word in (
                state.pages.key_low,
                state.pages.key_high,
                state.pages.table,
                state.pages.last_step,
            )
        )
        frames = np.asarray(state.pages.frames).reshape(-1, config.num_chunks)
        utility = np.asarray(state.pages.utility).reshape(-1, config.num_chunks)
        values = np.asarray(state.pool.values).reshape(-1)
        for index, entry in enumerate(self.ways):
            if entry is None:
                assert table[index] == -1
                continue
            assert (low[index], high[index], table[index]) == entry.key
            assert last_step[index] == entry.last_step
            assert frames[index].tolist() == entry.frames
            np.testing.assert_allclose(utility[index], entry.utility, **tolerance(64))
            entry.utility = utility[index].copy()
            for frame in entry.frames:
                if frame:
                    start = frame * config.chunk_dim
                    got = values[start : start + config.chunk_dim]
                    np.testing.assert_allclose(got, self.values[frame], **tolerance(64))
                    self.values[frame] = got.copy()
