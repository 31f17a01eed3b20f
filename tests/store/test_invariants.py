"""Every invariant, broken once."""

import dataclasses

import jax
import numpy as np
import pytest

from helpers import make_store


@pytest.fixture
def store_and_state():
    store = make_store(initial_chunks=2)
    state = store.init(jax.random.key(0))
    state, _, _ = store.admit(state, np.arange(20, dtype=np.int32), tables=1)
    store.check_invariants(state)
    return store, state


def edit(state, part, field, change):
    array = np.asarray(getattr(getattr(state, part), field)).copy()
    array = change(array)
    new = dataclasses.replace(getattr(state, part), **{field: array})
    return dataclasses.replace(state, **{part: new})


def put(value, where):
    def change(array):
        array.reshape(-1)[where(array)] = value
        return array

    return change


def used(array):
    return np.flatnonzero(array.reshape(-1))[0]


def empty(array):
    return np.flatnonzero(array.reshape(-1) == 0)[0]


def swap_entries(array):
    return array[::-1].copy()


BREAKS = {
    "two_owners": ("pages", "frames", put(39, empty), "39 occurs 2 times"),
    "lost_frame": ("pages", "frames", put(0, used), "occurs 0 times"),
    "far_frame": ("pages", "frames", put(101, used), "got 101"),
    "free_twice": ("free", "frames", put(99, lambda a: 0), "occurs"),
    "free_count": ("free", "count", lambda a: a + 101, "free list"),
    "table": ("pages", "table", put(4, lambda a: np.argmax(a == 1)), "has 4"),
    "astray": ("pages", "key_low", lambda a: a + np.uint32(1), "bucket"),
    "utility": ("pages", "utility", put(np.nan, lambda a: 0), "utilit"),
    "negative": ("pages", "utility", put(-1.0, lambda a: 0), "utilit"),
    "late": ("pages", "last_step", put(2, lambda a: 0), "entry 0 has 2"),
    "early": ("pages", "last_step", put(-1, lambda a: 0), "entry 0 has -1"),
    "null_is_free": ("free", "frames", put(0, lambda a: 0), "got 0"),
    "null_frame": ("pool", "values", put(1.0, lambda a: 0), "null frame"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_state_is_told(store_and_state, name):
    store, state = store_and_state
    part, field, change, words = BREAKS[name]
    broken = edit(state, part, field, change)
    with pytest.raises(ValueError, match=words):
        store.check_invariants(broken)


def test_a_key_tracked_twice_is_told(store_and_state):
    store, state = store_and_state
    table = np.asarray(state.pages.table).reshape(-1, store.config.num_ways)
    bucket = np.argmax((table == 1).any(1) & (table == -1).any(1))
    first = bucket * store.config.num_ways
    twin = first + np.argmax(table[bucket] == -1)
    owner = first + np.argmax(table[bucket] == 1)
    for field in ("key_low", "key_high", "table"):
        state = edit(
            state,
            "pages",
            field,
            lambda a: put(a[owner], lambda _: twin)(a),
        )
    with pytest.raises(ValueError, match="tracked twice"):
        store.check_invariants(state)


def test_an_empty_entry_with_utility_is_told(store_and_state):
    store, state = store_and_state
    entry = int(np.argmax(np.asarray(state.pages.table) == -1))
    broken = edit(state, "pages", "utility", put(1.0, lambda a: entry * 4))
    with pytest.raises(ValueError, match="empty entry"):
        store.check_invariants(broken)


def test_an_empty_entry_with_a_frame_is_told(store_and_state):
    store, state = store_and_state
    entry = int(np.argmax(np.asarray(state.pages.table) == -1))
    top = int(state.free.count) - 1
    frame = int(state.free.frames[top])
    broken = edit(state, "pages", "frames", put(frame, lambda a: entry * 4))
    broken = edit(broken, "free", "count", lambda a: a - np.int32(1))
    with pytest.raises(ValueError, match=f"has frame {frame}"):
        store.check_invariants(broken)
