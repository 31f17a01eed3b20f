"""What numbers arrays hold is checked in the debug mode, by checkify."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

import pallas_kernels as pk
from helpers import assert_same_state, make_store

POOL = jnp.arange(32.0).reshape(4, 8)


def told(function, *arguments):
    """What is wrong, said by a function that is compiled for the debug mode."""
    with pk.debug_mode():
        return jax.jit(checkify.checkify(function))(*arguments)[0].get()


def read(frames):
    return pk.gather_chunks(POOL, frames, 4)


def read_fallback(frames):
    return pk.gather_chunks(POOL, 0 * frames, 4, fallback=(POOL[:2], frames))


def read_runs(starts):
    return pk.gather_runs(POOL, starts, 2 + 0 * starts, 4, 3)


def write(frames):
    return pk.scatter_chunks(POOL, frames, jnp.ones((*frames.shape, 4)))


def step(frames):
    def add(windows, _):
        return (windows[0] + 1,), jnp.ones((windows[0].shape[0], 1), bool)

    return pk.update_chunks((POOL,), frames, (), add, (4,))


def probe(buckets):
    return pk.probe_page_table((jnp.arange(8),), (buckets,), buckets, 2)


@pytest.mark.parametrize(
    ("function", "sound", "broken", "words"),
    [
        (read, [0, 7], [7, 8, 3], "frames must be in [0, 8), got 8"),
        (read, [], [-1], "frames must be in [0, 8), got -1"),
        (
            read_fallback,
            [0, 3],
            [4],
            "frames of fallback must be in [0, 4), got 4",
        ),
        (read_runs, [1, 6], [7], "frames of runs must be in [0, 8), got 8"),
        (write, [[0, 3, 0, 9, 9, -1]], [[3, 1], [2, 3]], "distinct, got 3 twice"),
        (step, [0, 3, 0, 9, 9, -1], [3, 1, 2, 3], "frames must be distinct, got 3"),
        (step, [5], [7, 7, 6], "frames must be distinct, got 7"),
        (probe, [0, 3], [1, 4], "buckets must be in [0, 4), got 4"),
    ],
)
def test_numbers_that_are_not_allowed_are_told(function, sound, broken, words):
    assert told(function, jnp.int32(sound)) is None
    assert words in told(function, jnp.int32(broken))
    jax.jit(function)(jnp.int32(broken))  # not looked at elsewhere


def test_they_are_not_checked_elsewhere():
    for function in (read, read_runs, write, step, probe):
        traced = jax.make_jaxpr(function)(jnp.int32([1, 2]))
        assert not traced.effects  # JAX dispatches what has effects more slowly
        assert "check" not in str(traced)
    checked = jax.jit(checkify.checkify(read))
    assert checked(jnp.int32([8]))[0].get() is None
    with pk.debug_mode():  # traced again
        assert "got 8" in checked(jnp.int32([8]))[0].get()


def test_a_store_is_trained_and_its_state_checked_in_the_debug_mode():
    store = make_store()
    ids = jnp.int32([3, 5, 3, -1])

    def train(state):
        state, handle, _ = store.admit(state, ids)
        vectors = store.gather(state, handle)
        state, _ = store.apply_gradients(state, handle, vectors + 1.0)
        return store.prune_step(state)[0]

    state = store.init(jax.random.key(0))
    with pk.debug_mode():
        error, checked = jax.jit(checkify.checkify(train))(state)
    assert error.get() is None
    assert_same_state(checked, jax.jit(train)(state))
    away = jnp.full_like(checked.pages.start, 1 << 15)
    pages = dataclasses.replace(checked.pages, start=away)
    broken = dataclasses.replace(checked, pages=pages)
    assert "frames" in told(lambda state: store.lookup(state, ids), broken)
