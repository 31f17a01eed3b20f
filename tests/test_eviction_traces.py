"""Who keeps its entry and its frames, worked by hand for every rule of eviction.

Keys are (table, id). Utilities halve per step: what the first step after a prune step
scores counts twice and what the second does four times, until the next one scales all
back. `cafe` has a sketch and not a store: see `test_baselines.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fiited_jax as fj
from fiited_jax.utility import decode
from helpers import jitted, make_store

LANES = 64
SGD = fj.sparse(optax.sgd(0.5))


# Compiled once: admission knows nothing of these rules.
NOT_ADMISSION = {
    "scorer": fj.scorers.fiited(),
    "utility_scale": "none",
    "table_floors": None,
    "hysteresis": 0.0,
}


class Trace:
    """A store of one bucket that is driven key by key."""

    def __init__(self, num_entries, num_rows, **rules):
        rules = {"half_life": 1.0, "headroom": 0.0, "num_tables": 2} | rules
        self.store = make_store(
            SGD,
            num_entries=num_entries,
            num_ways=num_entries,
            num_frames=num_rows + 1,
            embedding_dim=4,
            **rules,
        )
        self.run = jitted(self.store)
        plain = dataclasses.replace(self.store.config, **NOT_ADMISSION)
        self.admit = jitted(fj.EmbeddingStore(plain, SGD)).admit
        self.state = self.store.init(jax.random.key(0))

    def step(self, *lookups):
        """Admit and score; a lookup is a key and the gradient of its vector.

        Returns the keys that were evicted.
        """
        ids, tables = np.full(LANES, -1, np.int32), np.zeros(LANES, np.int32)
        grads = np.zeros((LANES, 4), np.float32)
        for lane, ((table, id_), grad) in enumerate(lookups):
            ids[lane], tables[lane] = id_, table
            grads[lane, : len(grad)] = grad
        self.state, handle, info = self.admit(self.state, ids, tables=tables)
        self.state, _ = self.run.apply(self.state, handle, grads)
        lost = np.asarray(info.evicted_mask)
        lost = zip(info.evicted_tables[lost], info.evicted_keys.low[lost], strict=True)
        return [(int(table), int(id_)) for table, id_ in lost]

    def prune(self):
        """Return how many chunks lost their frame and how many got one."""
        self.state, info = self.run.prune(self.state)
        return int(info.freed), int(info.granted)

    def by_key(self, column):
        """A column of the page table, by key, without what is 0."""
        owner = np.asarray(self.state.pages.owner).tolist()
        ids = np.asarray(self.state.pages.key_low).tolist()
        rows = zip(owner, ids, np.asarray(column), strict=True)
        return {(owner - 1, id_): value.tolist() for owner, id_, value in rows if owner}

    def check_utilities(self, expected):
        utility = decode(self.state.pages.utility)
        got = self.by_key(utility.reshape(-1, self.store.config.num_utilities))
        assert list(got) == list(expected)
        for key, worth in expected.items():
            np.testing.assert_allclose(got[key], np.ravel(worth), rtol=2.0**-8)

    def extents(self):
        """How many chunks have a frame, or a bit for each; those that have any."""
        extents = self.by_key(self.state.pages.extent)
        return {key: extent for key, extent in extents.items() if extent}


def row_trace(**rules):
    """A store of 24 entries and 13 rows, of which only prune steps give any."""
    return Trace(24, 13, chunk_dim=4, initial_chunks=0, **rules)


def test_fiited_keeps_the_longest_vectors_of_the_best():
    trace = Trace(4, 4, chunk_dim=2, length_alpha=1.0, scorer=fj.scorers.grad_norm())
    a, b, c, d, e = ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2))
    # Norms that cancel in the sum count: a 3 + 1, b 3, c 1, d 1.
    trace.step((a, [3.0]), (a, [-1.0]), (b, [3.0]), (c, [1.0]), (d, [0.0, 0.0, 1.0]))
    trace.check_utilities({a: 8, b: 6, c: 2, d: 2})
    assert trace.extents() == {a: 1, b: 1, c: 1, d: 1}
    # Chunks are worth u and u / 2: a 8, b 6, a 4, b 3; c and d are left with 2.
    assert trace.prune() == (2, 2)
    assert trace.extents() == {a: 2, b: 2}
    # d is in the batch, so c goes, which has no frame to leave to e.
    assert trace.step((e, [5.0]), (d, [1.0])) == [c]
    trace.check_utilities({a: 4, b: 3, e: 10, d: 3})
    assert trace.extents() == {a: 2, b: 2}
    # e 10, e 5, a 4, and of b 3 and d 3 the lower entry.
    assert trace.prune() == (2, 2)
    assert trace.extents() == {a: 1, b: 1, e: 2}


def test_fiited_paper_keeps_the_best_chunks():
    trace = Trace(3, 3, chunk_dim=2, ranking="chunks", scorer=fj.scorers.fiited())
    a, b, c, d = (0, 1), (0, 2), (1, 1), (1, 2)
    # Count times norm of the sum: a 2 * |3, 4| and 2 * |0, 0|, b 1 and |3, 4|, c 2.
    trace.step((a, [3, 0, 1]), (a, [0, 4, -1]), (b, [1, 0, 3, 4]), (c, [2]))
    trace.check_utilities({a: [20, 0], b: [2, 10], c: [4, 0]})
    assert trace.extents() == {a: 0b01, b: 0b01, c: 0b01}
    # 20, 10 and 4; b has lost its first chunk and got its second.
    assert trace.prune() == (1, 1)
    assert trace.extents() == {a: 0b01, b: 0b10, c: 0b01}
    vector = trace.run.lookup(trace.state, jnp.array([2]), tables=0)[0]
    assert [value != 0 for value in vector.tolist()] == [False, False, True, True]
    # a 10, b 5 and c 2 are the best chunks of each: c goes, and d takes its frame. What
    # b does not have is scored too.
    assert trace.step((d, [1]), (b, [3])) == [c]
    trace.check_utilities({a: [10, 0], b: [7, 5], d: [2, 0]})
    assert trace.extents() == {a: 0b01, b: 0b10, d: 0b01}
    assert trace.prune() == (1, 1)
    assert trace.extents() == {a: 0b01, b: 0b11}


def test_adaembed_compares_over_the_95th_percentile_of_each_table():
    trace = row_trace(scorer=fj.scorers.fiited(), utility_scale="p95", hysteresis=0.1)
    # Ids of table 0 are named by their norms, 1 to 19 and 1000; the 95th percentile of
    # 20 is the second. Of four it is the first: 2 * |1|, as it comes twice.
    zero = [(0, norm) for norm in (*range(1, 20), 1000)]
    one = [(1, number) for number in range(4)]
    grads = dict(zip(one, (0.25, 0.5, 1.0, 0.5), strict=True))
    lookups = [(key, [key[1]]) for key in zero] + [(key, [grads[key]]) for key in one]
    trace.step(*lookups, (one[3], [0.5]))
    assert trace.extents() == {}  # no row before a prune step grants it
    # Scaled: 52.6, 1, 18/19 .. 10/19 = 0.53, 9/19 = 0.47; and 1, 0.5, 0.25, 0.125.
    rows = {(0, 1000): 1, one[3]: 1, one[2]: 1, **{(0, n): 1 for n in range(10, 20)}}
    assert trace.prune() == (0, 13)
    assert trace.extents() == rows
    worth = {key: key[1] for key in zero} | dict(
        zip(one, (0.25, 0.5, 1, 2), strict=True)
    )
    trace.check_utilities(worth)  # as stored: halved, not divided
    assert float(trace.state.threshold) == 1  # that of one[2], the lowest

    # 0.5 + 2 * 0.25 ties with one[2] and has the lower entry; but one row of 13 is less
    # than a tenth.
    trace.step((one[1], [0.25]))
    assert trace.prune() == (0, 0)
    assert trace.extents() == rows

    # 9 / 2 + 2 * 10 is the second of table 0 and its new unit: 24.5. Of the others
    # 12 / 2 is 0.245 and 11 / 2 is 0.224, the 14th; table 1 has 1, 0.5, 0.5, 0.125.
    trace.step(((0, 9), [10.0]))
    assert trace.prune() == (2, 2)
    assert trace.extents() == {
        **{(0, n): 1 for n in (9, *range(12, 20), 1000)},
        **dict.fromkeys(one[1:], 1),
    }
    # At admission all tables compete by what is stored, here 0.0625 against 0.25 of
    # (0, 1): one[0] goes.
    assert trace.step(((0, 50), [1.0])) == [one[0]]
    assert (0, 50) not in trace.extents()


def frequency_trace():
    """Three rows for table 0 and ten for table 1."""
    return row_trace(scorer=fj.scorers.frequency(), table_floors=(3 / 13, 10 / 13))


def test_itep_keeps_the_most_frequent_within_the_budget_of_each_table():
    trace = frequency_trace()
    # Ids of table 0 are named by how often they come. Gradients do not count.
    zero = [(0, times) for times in range(5, 10)]
    one = [(1, number) for number in range(11)]
    times = {key: key[1] for key in zero} | dict.fromkeys(one, 2) | {one[0]: 1}
    trace.step(*((key, [0.0]) for key in times for _ in range(times[key])))
    assert trace.extents() == {}  # no row before a prune step grants it
    # 5 and 6 are too few in table 0, while 2 is enough in table 1.
    rows = dict.fromkeys([*zero[2:], *one[1:]], 1)
    assert trace.prune() == (0, 13)
    assert trace.extents() == rows
    trace.check_utilities(times)
    trace.step((zero[0], [1.0]), (zero[0], [-1.0]), (one[0], [9.0]))
    trace.check_utilities(times | {zero[0]: 5 + 2 * 2, one[0]: 1 + 2})
    # 7 goes; of the ten that have 2 the one of the highest entry.
    assert trace.prune() == (2, 2)
    rows = dict.fromkeys([zero[0], *zero[3:], *one[:10]], 1)
    assert trace.extents() == rows
    # Eight more fill the bucket. Then the lowest goes, of whatever table and with its
    # row: of those that have 2 / 2 the one of the lowest entry.
    assert trace.step(*(((0, number), [1.0]) for number in range(20, 28))) == []
    assert trace.step(((0, 30), [1.0])) == [one[1]]
    del rows[one[1]]
    assert trace.extents() == rows


def test_lfu_replaces_the_least_frequent():
    trace = frequency_trace()
    keys = [(0, number) for number in range(24)]
    times = dict.fromkeys(keys, 2) | {keys[3]: 1, keys[7]: 1}
    assert trace.step(*((key, [1.0]) for key in keys for _ in range(times[key]))) == []
    worth = {key: 2 * times[key] for key in keys}
    trace.check_utilities(worth)
    # Both have 2, and the batch holds the first. Now a count is worth 4.
    assert trace.step(((0, 90), [9.0]), (keys[3], [1.0])) == [keys[7]]
    names = {keys[7]: (0, 90)}
    worth = {names.get(key, key): value for key, value in worth.items()}
    worth |= {(0, 90): 4, keys[3]: 2 + 4}
    trace.check_utilities(worth)
    # All but one have 4: the lowest entry that the batch does not hold.
    assert trace.step((keys[0], [1.0]), ((0, 91), [1.0])) == [keys[1]]
    assert trace.step(((0, 92), [1.0]), ((0, 93), [1.0])) == [keys[2], keys[4]]
