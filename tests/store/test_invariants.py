"""Every invariant, broken once."""

import dataclasses

import jax
import numpy as np
import pytest

from helpers import make_store


@pytest.fixture
def store_and_state():
    return used()


def used(**fields):
    """A store that has seen some ids."""
    store = make_store(initial_chunks=2, **fields)
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


def first_used(array):
    return np.flatnonzero(array.reshape(-1))[0]


def first_free(array):
    return np.flatnonzero(array.reshape(-1) == 0)[0]


BREAKS = {
    "two_owners": ("pages", "start", put(39, first_used), "39 has 2"),
    "lost_frames": ("arena", "idle", lambda a: a + 1, "idle must count"),
    "far_frame": ("pages", "start", put(40, first_used), "got 41"),
    "next_frame": ("arena", "next_frame", lambda a: a + 100, "next_frame"),
    "run_without_start": ("pages", "start", put(0, first_used), "if and only if"),
    "run_without_chunks": ("pages", "extent", put(0, first_used), "if and only if"),
    "extent": ("pages", "extent", put(5, first_used), "at most 4"),
    "table": ("pages", "owner", put(5, first_used), "has 4"),
    "astray": ("pages", "key_low", lambda a: a + np.uint32(1), "bucket"),
    "utility": ("pages", "utility", put(0xFF01, lambda a: 0), "utilities must"),
    "late": ("arena", None, None, "decayed_at must be in"),
    "null_frame": ("pool", "values", put(1.0, lambda a: 0), "null frames"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_state_is_told(store_and_state, name):
    store, state = store_and_state
    part, field, change, words = BREAKS[name]
    if name == "late":
        broken = dataclasses.replace(state, decayed_at=state.step + 1)
    else:
        broken = edit(state, part, field, change)
    with pytest.raises(ValueError, match=words):
        store.check_invariants(broken)


def test_a_run_before_the_pool_is_told():
    store, state = used(num_frames=(1 << 16) + 1)  # fewer have no sign
    broken = edit(state, "pages", "start", put(-1, first_used))
    with pytest.raises(ValueError, match="got -1"):
        store.check_invariants(broken)


def test_a_key_tracked_twice_is_told(store_and_state):
    store, state = store_and_state
    owner = np.asarray(state.pages.owner).reshape(-1, store.config.num_ways)
    bucket = np.argmax((owner > 0).any(1) & (owner == 0).any(1))
    first = bucket * store.config.num_ways
    twin = first + np.argmax(owner[bucket] == 0)
    tracked = first + np.argmax(owner[bucket] > 0)
    for field in ("key_low", "key_high", "owner"):
        state = edit(
            state,
            "pages",
            field,
            lambda a: put(a[tracked], lambda _: twin)(a),
        )
    with pytest.raises(ValueError, match="tracked twice"):
        store.check_invariants(state)


def test_a_free_entry_with_utility_is_told(store_and_state):
    store, state = store_and_state
    entry = int(first_free(np.asarray(state.pages.owner)))
    broken = edit(state, "pages", "utility", put(1, lambda a: entry))
    with pytest.raises(ValueError, match="free entry"):
        store.check_invariants(broken)


def test_a_free_entry_with_a_frame_is_told(store_and_state):
    store, state = store_and_state
    entry = int(first_free(np.asarray(state.pages.owner)))
    start = int(state.arena.next_frame)
    broken = edit(state, "pages", "start", put(start, lambda a: entry))
    broken = edit(broken, "pages", "extent", put(1, lambda a: entry))
    broken = edit(broken, "arena", "next_frame", lambda a: a + np.int32(1))
    with pytest.raises(ValueError, match="has extent 1"):
        store.check_invariants(broken)
