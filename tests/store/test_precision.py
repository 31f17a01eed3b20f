"""Values of 16 bits: what is stored, how it is rounded, and what that costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from fiited_jax.precision import (
    from_stored,
    round_nearest,
    round_stochastic,
    to_stored,
)
from helpers import assert_same_state, jitted, make_store, tolerance

SGD = fj.sparse(optax.sgd(1.0))
BITS = np.dtype(np.uint16)


def test_rounded_values_are_stored_exactly():
    values = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
    rounded = round_nearest(values)
    np.testing.assert_array_equal(rounded, values.astype(jnp.bfloat16))
    np.testing.assert_array_equal(from_stored(to_stored(rounded, BITS)), rounded)
    # What is rounded already is not rounded again, whatever the noise.
    noise = jnp.full(1000, 0xFFFFFFFF, jnp.uint32)
    np.testing.assert_array_equal(round_stochastic(rounded, noise), rounded)


def test_stochastic_rounding_goes_to_a_neighbour_and_is_right_on_average():
    noise = jax.random.bits(jax.random.key(0), (1 << 16,), jnp.uint32)
    for value in (1.001, -3.3, 1e-30):
        got = np.asarray(round_stochastic(jnp.full(1 << 16, value, jnp.float32), noise))
        distance = np.abs(np.float32(value)) * 2.0**-7
        assert len(set(got.tolist())) == 2
        assert np.all(np.abs(got - np.float32(value)) < distance)
        np.testing.assert_allclose(got.mean(dtype=np.float64), value, rtol=2e-4)


def test_what_is_not_finite_stays_so():
    odd = jnp.float32([np.inf, -np.inf, np.nan])
    got = round_stochastic(odd, jnp.full(3, 0xFFFFFFFF, jnp.uint32))
    np.testing.assert_array_equal(got, odd)


def trained(steps, **fields):
    """Values of four keys after many small steps towards them, and their state."""
    store = make_store(SGD, value_dtype="bfloat16", initial_chunks=4, **fields)
    run, state = jitted(store), store.init(jax.random.key(0))
    ids = np.arange(4, dtype=np.int32)
    for step in range(steps):
        state, handle, _ = run.admit(state, ids)
        grads = jnp.full((4, 8), -1.0 if step == 0 else -1e-3)
        state, info = run.apply(state, handle, grads)
        assert int(info.updated) == 16
    store.check_invariants(state)
    return np.asarray(run.lookup(state, ids)), state


def test_small_steps_add_up():
    values, state = trained(1000, initial_scale=0.0)
    assert state.pool.values.dtype == np.uint16
    # Rounded to the nearest they would all be at 1: a step is a quarter of a rounding.
    np.testing.assert_allclose(values.mean(), 1.999, rtol=0.02)
    # Every value has a rounding of its own, within a frame too.
    assert len(np.unique(values)) > 8
    assert np.mean(values[:, ::2] != values[:, 1::2]) > 0.8


def test_the_same_seed_rounds_the_same():
    assert_same_state(trained(5)[1], trained(5)[1])


def test_a_value_that_would_round_to_infinity_is_left_alone():
    store = make_store(SGD, value_dtype="bfloat16", initial_chunks=4)
    state = store.init(jax.random.key(0))
    ids = np.arange(16, dtype=np.int32)
    state, handle, _ = store.admit(state, ids)
    most = np.float32(np.finfo(np.float32).max)
    state, info = store.apply_gradients(state, handle, jnp.full((16, 8), -most / 4))
    before = store.lookup(state, ids)
    state, info = store.apply_gradients(
        state, handle, jnp.full((16, 8), -most / 4 * 2.999)
    )
    assert np.all(np.isfinite(store.lookup(state, ids)))
    assert 0 < int(info.non_finite) == 64 - int(info.updated)
    assert np.any(np.asarray(store.lookup(state, ids)) == np.asarray(before))


def test_fresh_values_are_the_nearest_to_those_of_float32():
    ids, vectors = np.arange(64, dtype=np.int32), []
    for dtype in ("float32", "bfloat16"):
        store = make_store(value_dtype=dtype, initial_chunks=4, num_frames=300)
        state, handle, _ = store.admit(store.init(jax.random.key(0)), ids)
        vectors.append(store.gather(state, handle))
    np.testing.assert_array_equal(round_nearest(vectors[0]), vectors[1])


def test_the_two_pools_round_apart():
    fields = {"fallback": "shared", "num_shared": 1, "value_dtype": "bfloat16"}
    store = make_store(SGD, initial_scale=0.0, initial_chunks=4, **fields)
    run, state = jitted(store), store.init(jax.random.key(0))
    state, _, _ = run.admit(state, np.array([1, -1], np.int32))
    handle = store.find(state, np.array([1, 2], np.int32))
    for _ in range(8):  # equal steps at equal places of both pools
        state, _ = run.apply(state, handle, jnp.full((2, 8), 0.001))
    own, shared = np.asarray(run.lookup(state, np.array([1, 2], np.int32)))
    assert np.all(own < 0)
    assert np.any(own != shared)


def test_large_values_of_dense_tables_stay_finite():
    most = float(np.finfo(np.float32).max)
    store = make_store(value_dtype="bfloat16")
    table = np.float32([[most] * 8, [-most] * 8])
    store, state, _ = fj.from_dense(
        [table], store.config, store.optimizer, key=jax.random.key(0)
    )
    got = np.asarray(store.lookup(state, np.arange(2, dtype=np.int32)))
    np.testing.assert_allclose(got, table, rtol=2.0**-7)


@pytest.mark.slow
@pytest.mark.parametrize("fallback", ["zero", "shared"])
def test_a_store_of_16_bits_learns_what_one_of_32_does(fallback):
    fields = {"num_shared": 3, "fallback": fallback} if fallback == "shared" else {}
    wide = make_store(fj.sparse(optax.sgd(0.01)), **fields)
    narrow = dataclasses.replace(
        wide, config=dataclasses.replace(wide.config, value_dtype="bfloat16")
    )
    rng, results = np.random.default_rng(0), []
    batches = [rng.integers(0, 40, 64).astype(np.int32) for _ in range(20)]
    grads = jnp.asarray(rng.normal(size=(20, 64, 8)), jnp.float32)
    for store in (wide, narrow):
        run, state = jitted(store), store.init(jax.random.key(0))
        for ids, part in zip(batches, grads, strict=True):
            state, handle, _ = run.admit(state, ids)
            state, _ = run.apply(state, handle, part)
            state, _ = run.prune(state)
        results.append(run.lookup(state, np.arange(40, dtype=np.int32)))
    np.testing.assert_array_equal(results[0] != 0, results[1] != 0)
    np.testing.assert_allclose(*results, **tolerance(20, "bfloat16"))


@pytest.mark.parametrize("fallback", ["zero", "shared"])
@pytest.mark.parametrize("budget", range(20_000, 22_000, 250))
def test_lines_and_entries_come_by_what_is_copied_together(budget, fallback):
    config = fj.EmbeddingConfig.from_budget(
        budget,
        embedding_dim=8,
        chunk_dim=4,
        optimizer=SGD,
        value_dtype="bfloat16",
        fallback=fallback,
        kernels="mosaic_tpu",
    )
    store = fj.EmbeddingStore(config, SGD)
    state = jax.eval_shape(store.init, jax.random.key(0))
    assert state.pool.values.shape[0] % 2 == 0
    assert config.num_entries % 512 == 0
    assert state.shared is None or state.shared.values.shape[0] % 2 == 0
    assert fj.predict_memory(config, SGD).all_in_bytes <= budget


def test_half_the_bytes_hold_more_frames():
    optimizer = fj.rowwise_adagrad(0.1)
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        config = fj.EmbeddingConfig.from_budget(
            "1MiB",
            embedding_dim=16,
            chunk_dim=16,
            optimizer=optimizer,
            value_dtype=dtype,
        )
        report = fj.predict_memory(config, optimizer)
        assert 0.95 * (1 << 20) < report.all_in_bytes <= 1 << 20
        per_value = report.values / config.num_frames / 16
        np.testing.assert_allclose(per_value, 4 if dtype == "float32" else 2, rtol=0.01)
        sizes[dtype] = config.num_frames
    assert sizes["bfloat16"] > 1.5 * sizes["float32"]


@pytest.mark.parametrize(
    ("num_tables", "num_chunks", "kernels", "group"),
    [
        (255, 2, "mosaic_tpu", 512),
        (256, 2, "sparsecore", 512),  # a byte says how many chunks there are
        (255, 16, "mosaic_tpu", 512),
        (256, 16, "mosaic_tpu", 256),
        (1 << 16, 32, "mosaic_tpu", 256),  # as numbers of frames may have two
        (255, 2, "triton", 32),
    ],
)
def test_entries_come_by_whole_pieces_of_what_is_shortest(
    num_tables, num_chunks, kernels, group
):
    config = fj.EmbeddingConfig.from_budget(
        "1MiB",
        embedding_dim=4 * num_chunks,
        chunk_dim=4,
        ranking="lengths" if num_chunks == 2 else "chunks",
        optimizer=SGD,
        num_tables=num_tables,
        kernels=kernels,
    )
    assert config.entry_group == group
    assert config.num_entries % group == 0
    used = fj.predict_memory(config, SGD).all_in_bytes
    assert 0.95 * (1 << 20) <= used <= 1 << 20


def test_lines_of_short_optimizer_state_are_even_on_a_tpu():
    config = fj.EmbeddingConfig(
        embedding_dim=8,
        chunk_dim=4,
        num_entries=512,
        num_frames=70,  # 3 lines
        kernels="mosaic_tpu",
    )
    optimizer = fj.sparse(optax.adam(0.1, mu_dtype="bfloat16"))
    state = jax.eval_shape(fj.EmbeddingStore(config, optimizer).init, jax.random.key(0))
    lines = [leaf for leaf in jax.tree.leaves(state.pool) if leaf.ndim == 2]
    assert {leaf.shape for leaf in lines} == {(4, 128)}
    assert {str(leaf.dtype) for leaf in lines} == {"float32", "bfloat16"}
