import jax
import jax.numpy as jnp
import numpy as np
import optax

import fiited_jax as fj
from fiited_jax.keys import Keys
from fiited_jax.shared_pool import shared_frames
from helpers import make_store, tolerance

SHARED = {"fallback": "shared", "num_shared": 97}


def test_shared_vectors_start_apart():
    store = make_store(**SHARED)
    state = store.init(jax.random.key(0))
    vectors = np.asarray(state.shared.values).reshape(-1)[2:][: 97 * 8].reshape(97, 8)
    assert len(np.unique(vectors)) == vectors.size
    assert np.abs(vectors).max() <= store.config.initial_scale


def test_every_part_of_a_key_chooses_the_vector():
    config = make_store(**SHARED).config
    index = jnp.arange(1000, dtype=jnp.uint32)
    zero, nothing = jnp.zeros_like(index), jnp.zeros(1000, jnp.int32)
    for keys, tables in (
        (Keys(index, zero), nothing),
        (Keys(zero, index), nothing),
        (Keys(zero, zero), index.astype(jnp.int32)),
    ):
        frames = np.asarray(shared_frames(keys, tables, nothing, config))
        assert set(frames.tolist()) == {1 + 4 * row for row in range(97)}
        after = np.asarray(shared_frames(keys, tables, nothing + 3, config))
        np.testing.assert_array_equal(after, frames + 3)


def test_shared_vectors_follow_the_schedule():
    optimizer = fj.sparse(optax.sgd, learning_rate=lambda step: 1.0 / (1.0 + step))
    store = make_store(optimizer, initial_chunks=0, **SHARED)
    state, ids = store.init(jax.random.key(0)), np.array([3], np.int32)
    for step in range(3):
        before = store.lookup(state, ids)
        handle = store.find(state, ids)
        state, _ = store.apply_gradients(state, handle, jnp.ones((1, 8)))
        moved = np.asarray(store.lookup(state, ids) - before)
        np.testing.assert_allclose(moved, -1.0 / (1.0 + step), **tolerance(4))
