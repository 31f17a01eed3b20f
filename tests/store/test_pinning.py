import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fiited_jax as fj
from helpers import jitted, make_store


def trained(ranking, **fields):
    """A store with room for some of the chunks of 16 keys, key 0 worth the least."""
    store = make_store(
        num_frames=33,
        headroom=0.0,
        hysteresis=0.0,
        ranking=ranking,
        scorer=fj.scorers.frequency(),
        **fields,
    )
    run, state = jitted(store), store.init(jax.random.key(0))
    ids = np.repeat(np.arange(16, dtype=np.int32), np.arange(16) + 1)
    state, handle, _ = run.admit(state, ids)
    state, _ = run.apply(state, handle, jnp.ones((len(ids), 8)))
    return store, run, state


def lengths(run, state):
    vectors = run.lookup(state, np.arange(16, dtype=np.int32))
    return np.count_nonzero(vectors, axis=1)


@pytest.mark.parametrize("ranking", ["lengths", "chunks"])
def test_a_pinned_key_keeps_all_its_chunks(ranking):
    store, run, state = trained(ranking)
    state, _ = run.prune(state)
    assert lengths(run, state)[0] <= 2
    state, pinned = store.pin(state, np.array([0, 99, -1], np.int32))
    np.testing.assert_array_equal(pinned, [True, False, False])
    store.check_invariants(state)
    others = np.arange(1, 16, dtype=np.int32)
    for _ in range(3):
        state, handle, _ = run.admit(state, others)
        state, _ = run.apply(state, handle, jnp.ones((15, 8)))
        state, _ = run.prune(state)
        assert lengths(run, state)[0] == 8
    store.check_invariants(state)

    state, unpinned = store.unpin(state, np.array([0, 1], np.int32))
    np.testing.assert_array_equal(unpinned, [True, False])
    for _ in range(40):  # scored again, it is like any other
        state, handle, _ = run.admit(state, others)
        state, _ = run.apply(state, handle, jnp.ones((15, 8)))
    state, _ = run.prune(state)
    assert lengths(run, state)[0] <= 2


def test_a_pinned_key_is_scored_and_stays_pinned():
    store, run, state = trained("lengths")
    ids = np.array([3], np.int32)
    state, _ = store.pin(state, ids)
    state, handle, _ = run.admit(state, ids)
    before = np.asarray(store.gather(state, handle))
    state, info = run.apply(state, handle, jnp.ones((1, 8)))
    assert int(info.updated) == 1
    assert not np.array_equal(store.gather(state, handle), before)
    flood = np.arange(1000, 1512, dtype=np.int32)
    state, _, info = run.admit(state, flood)
    assert int(info.failed) > 0
    held = np.asarray(store.find(state, np.arange(16, dtype=np.int32)).entries) >= 0
    np.testing.assert_array_equal(held, np.arange(16) == 3)


def test_more_pinned_chunks_than_frames_are_cut_by_index():
    store, run, state = trained("lengths")
    state, pinned = store.pin(state, np.arange(16, dtype=np.int32))
    assert np.asarray(pinned).all()
    state, info = run.prune(state)
    assert float(info.threshold) == np.inf
    assert int(info.frames_used) == 32
    store.check_invariants(state)
    state, _ = store.unpin(state, np.arange(16, dtype=np.int32))
    state, info = run.prune(state)
    assert float(info.threshold) == 0.0
    store.check_invariants(state)
