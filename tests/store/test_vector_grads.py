import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from helpers import jitted, make_store, tolerance

NUM_IDS, DIM = 10, 8
IDS = np.array([[3, 1, 3], [0, 3, 9]], np.int32)  # with duplicates
STORE = make_store(fj.sparse(optax.adam(0.1)), initial_chunks=4, initial_scale=0.5)
EVERYONE = np.arange(NUM_IDS, dtype=np.int32)


@functools.cache
def begun():
    """A state that tracks everyone, and the dense table that it holds."""
    state, _, info = jitted(STORE).admit(STORE.init(jax.random.key(0)), EVERYONE)
    assert int(info.failed) == 0
    return state, np.asarray(jitted(STORE).lookup(state, EVERYONE))


def random_grads(shape=IDS.shape, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(*shape, DIM)), jnp.float32)


def dense_sum(ids, grads):
    summed = np.zeros((NUM_IDS, DIM), np.float32)
    np.add.at(summed, ids, grads)
    return jnp.asarray(summed)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_that_of_a_dense_table(max_norm):
    state, _ = begun()
    handle, grads = STORE.find(state, IDS), random_grads()
    dense = dense_sum(IDS, grads)
    norm = fj.vector_grad_norm(handle, grads)
    np.testing.assert_allclose(norm, np.linalg.norm(dense), **tolerance(IDS.size))
    assert abs(float(norm) - float(np.linalg.norm(grads))) > 0.1
    clip = optax.clip_by_global_norm(max_norm)
    expected, _ = clip.update(dense, clip.init(dense))
    got = jax.jit(fj.clip_vector_grads)(handle, grads, max_norm)
    np.testing.assert_allclose(dense_sum(IDS, got), expected, **tolerance(IDS.size))
    if max_norm > float(norm):
        np.testing.assert_array_equal(got, grads)


def test_optax_clips_distinct_ids_alone_and_with_dense_weights():
    state, _ = begun()
    ids = np.array([4, 2, 7], np.int32)
    handle, grads = STORE.find(state, ids), random_grads(ids.shape)
    clip = optax.clip_by_global_norm(0.5)
    alone, _ = clip.update(grads, clip.init(grads))
    got = fj.clip_vector_grads(handle, grads, 0.5)
    np.testing.assert_allclose(got, alone, **tolerance(1))
    weights = jnp.ones((3, 2))
    both, _ = clip.update((weights, grads), clip.init((weights, grads)))
    norm = jnp.hypot(np.linalg.norm(weights), fj.vector_grad_norm(handle, grads))
    np.testing.assert_allclose(grads * 0.5 / norm, both[1], **tolerance(1))


def test_the_norm_is_of_what_the_store_uses():
    state, _ = begun()
    ids = np.array([3, -1, 4, 77, 3], np.int32)  # padding, and an id without an entry
    handle, grads = STORE.find(state, ids), random_grads(ids.shape)
    used = grads[jnp.array([0, 2, 4])]
    expected = np.linalg.norm(dense_sum(ids[[0, 2, 4]], used))
    norm = fj.vector_grad_norm(handle, grads)
    np.testing.assert_allclose(norm, expected, **tolerance(3))
    # What is not finite leaves the rest of the batch alone.
    spoilt = grads.at[2, 5].set(jnp.inf).at[0, 0].set(jnp.nan)
    dense = dense_sum(ids[[0, 2, 4]], used).at[4, 5].set(0.0).at[3, 0].set(0.0)
    norm = fj.vector_grad_norm(handle, spoilt)
    np.testing.assert_allclose(norm, np.linalg.norm(dense), **tolerance(3))
    got = np.asarray(fj.clip_vector_grads(handle, spoilt, 0.5))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(spoilt))
    assert np.count_nonzero(got[2]) == DIM


def test_dtypes_and_shapes_of_gradients():
    state, _ = begun()
    handle = STORE.find(state, IDS)
    halves = random_grads().astype(jnp.bfloat16)
    assert fj.vector_grad_norm(handle, halves).dtype == jnp.float32
    assert fj.clip_vector_grads(handle, halves, 0.5).dtype == jnp.bfloat16
    nothing = STORE.find(state, np.zeros((0, 3), np.int32))
    assert float(fj.vector_grad_norm(nothing, jnp.zeros((0, 3, DIM)))) == 0.0
    zeros = jnp.zeros_like(halves)
    np.testing.assert_array_equal(fj.clip_vector_grads(handle, zeros, 0.5), zeros)
    with pytest.raises(ValueError, match=r"\(2, 3\) of the lookups .* got \(3, 8\)"):
        fj.clip_vector_grads(handle, jnp.zeros((3, DIM)), 0.5)
    for wrong in (0.0, -1, float("nan")):
        with pytest.raises(ValueError, match="max_norm must be positive"):
            fj.clip_vector_grads(handle, halves, wrong)


def loss(vectors, targets):
    return jnp.mean((vectors.sum((-2, -1)) - targets) ** 2)


def part(tree, number):
    return jax.tree.map(lambda leaf: leaf[number], tree)


def large_batch():
    """Four micro-batches `[A, B, F]`, and what one batch of them all makes of them."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, NUM_IDS, (4, 5, 3)).astype(np.int32)
    targets = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    state, table = begun()
    grads = jax.grad(loss)(jnp.asarray(table[ids.reshape(20, 3)]), targets.reshape(20))
    adam = optax.adam(0.1)
    summed = dense_sum(ids.reshape(20, 3), grads)
    updates, _ = adam.update(summed, adam.init(table), table)
    is_touched = np.isin(EVERYONE, ids)[:, None]
    return state, ids, targets, np.where(is_touched, table + updates, table)


def test_accumulating_micro_batches_is_one_large_batch():
    state, ids, targets, expected = large_batch()

    @jax.jit
    def train_step(state, ids, targets):
        state, handle, _ = STORE.admit(state, ids)

        def micro_step(_, number):
            vectors = STORE.gather(state, part(handle, number))
            return None, jax.grad(loss)(vectors, targets[number])

        _, grads = jax.lax.scan(micro_step, None, jnp.arange(len(ids)))
        state, info = STORE.apply_gradients(state, handle, grads / len(ids))
        return state, info

    after, info = train_step(state, ids, targets)
    assert int(info.stale) == 0
    assert int(after.step) == int(state.step) + 1
    got = jitted(STORE).lookup(after, EVERYONE)
    np.testing.assert_allclose(got, expected, **tolerance(ids.size))


def test_handles_of_micro_batches_can_be_concatenated():
    state, ids, targets, expected = large_batch()
    admit, handles, grads = jax.jit(STORE.admit), [], []
    for some, target in zip(ids, targets, strict=True):
        state, handle, _ = admit(state, some)
        handles.append(handle)
        grads.append(jax.grad(loss)(STORE.gather(state, handle), target))
    handle = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *handles)
    grads = jnp.concatenate(grads) / len(ids)
    after, info = jax.jit(STORE.apply_gradients)(state, handle, grads)
    assert int(info.stale) == 0
    got = jitted(STORE).lookup(after, EVERYONE)
    np.testing.assert_allclose(got, expected, **tolerance(ids.size))
