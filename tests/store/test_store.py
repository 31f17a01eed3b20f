"""What the model-based test does not reach: values, arguments, counters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from fiited_jax.utility import decode
from helpers import (
    assert_same_state,
    copy_state,
    jitted,
    make_config,
    make_store,
    tolerance,
)

BATCH, STEPS, NUM_IDS = 32, 20, 24


def never_pruned(optimizer, chunk_dim):
    """A store with a frame for every chunk, its state and its batches."""
    store = make_store(
        optimizer,
        chunk_dim=chunk_dim,
        num_entries=1024,
        num_frames=1 + NUM_IDS * 8 // chunk_dim,
        initial_chunks=8 // chunk_dim,
        initial_scale=0.5,
    )
    rng = np.random.default_rng(chunk_dim)
    batches = []
    for _ in range(STEPS):
        ids = rng.integers(0, NUM_IDS, BATCH).astype(np.int32)  # with duplicates
        batches.append((ids, rng.normal(size=(BATCH, 8)).astype(np.float32)))
    return store, store.init(jax.random.key(1)), batches


def train(store, state, batches):
    run = jitted(store)
    for ids, grads in batches:
        state, handle, info = run.admit(state, ids)
        assert int(info.failed) == 0
        state, _ = run.apply(state, handle, jnp.asarray(grads))
    return state


def test_pruned_chunks_are_scored_and_return():
    store = make_store(
        ranking="chunks",
        num_frames=9,
        initial_chunks=0,
        scorer=fj.scorers.grad_norm(),
    )
    run, state = jitted(store), store.init(jax.random.key(0))
    ids = np.array([3], np.int32)
    state, handle, _ = run.admit(state, ids)
    np.testing.assert_array_equal(store.gather(state, handle), np.zeros((1, 8)))
    grads = np.float32([[0, 0, 3, 4, 0, 0, 0, 1]])
    state, info = run.apply(state, handle, jnp.asarray(grads))
    assert int(info.updated) == 0
    entry = int(handle.entries[0])
    utility = np.asarray(decode(state.pages.utility)).reshape(-1, 4)[entry]
    np.testing.assert_allclose(utility, [0, 5, 0, 1], rtol=2.0**-8)
    state, info = run.prune(state)
    assert int(info.granted) == 2  # no frame for a chunk of no utility
    vector = np.asarray(run.lookup(state, ids))[0]
    np.testing.assert_array_equal(vector != 0, np.repeat([0, 1, 0, 1], 2) > 0)


def test_scorers_by_hand():
    store_of = {name: make() for name, make in fj.scorers.SCORERS.items()}
    grads = np.float32([[3, 4], [-3, -4], [0, 2]])  # the first two cancel
    expected = {
        "fiited": 3 * 2.0,
        "grad_norm": 5 + 5 + 2.0,
        "frequency": 3.0,
        "saliency": None,
    }
    for name, scorer in store_of.items():
        store = make_store(
            embedding_dim=2, num_frames=9, scorer=scorer, initial_scale=0.5
        )
        state = store.init(jax.random.key(0))
        ids = np.array([1, 1, 1], np.int32)
        state, handle, _ = store.admit(state, ids)
        value = np.asarray(store.gather(state, handle))[0]
        state, _ = store.apply_gradients(state, handle, jnp.asarray(grads))
        got = float(decode(state.pages.utility[int(handle.entries[0])]))
        want = expected[name]
        if name == "saliency":
            want = abs(float(value @ np.float32([0, 2]))) + 0.1 * 2
        np.testing.assert_allclose(got, want, rtol=2.0**-8, err_msg=name)


def test_a_users_scorer_sees_tables_and_is_checked():
    def by_table(stats):
        return stats.table.astype(jnp.float32)

    store = make_store(scorer=by_table)
    state, handle, _ = store.admit(
        store.init(jax.random.key(0)), np.array([1], np.int32), tables=3
    )
    state, _ = store.apply_gradients(state, handle, jnp.ones((1, 8)))
    assert float(decode(state.pages.utility.max())) == 3.0
    wrong = make_store(scorer=lambda stats: stats.count[:, 0])
    with pytest.raises(ValueError, match=r"\(1, 1\); got \(1,\)"):
        wrong.apply_gradients(state, handle, jnp.ones((1, 8)))
    with pytest.raises(ValueError, match="norm_weight"):
        fj.scorers.saliency(0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20])
def test_non_finite_gradients_touch_only_their_chunk(bad):
    store = make_store(initial_chunks=4)
    run, state = jitted(store), store.init(jax.random.key(0))
    ids = np.array([1, 2], np.int32)
    state, handle, _ = run.admit(state, ids)
    before = np.asarray(store.gather(state, handle))
    grads = np.ones((2, 8), np.float32)
    grads[0, 3] = bad
    state, info = run.apply(state, handle, jnp.asarray(grads))
    assert int(info.non_finite) == 1
    assert int(info.updated) == 7
    after = np.asarray(store.gather(state, handle))
    same = before == after
    np.testing.assert_array_equal(same[0], [0, 0, 1, 1, 0, 0, 0, 0])
    assert not same[1].any()
    store.check_invariants(state)


def test_the_same_seed_gives_the_same_bits():
    def run_once():
        store, state, batches = never_pruned(fj.sparse(optax.adagrad(0.3)), 2)
        return train(store, state, batches)

    assert_same_state(run_once(), run_once())


def test_initial_values_depend_on_seed_key_table_and_chunk_alone():
    store = make_store(initial_chunks=4, initial_scale=0.5)

    def vectors(seed, ids, tables):
        state = store.init(jax.random.key(seed))
        ids, tables = np.int32(ids), np.broadcast_to(np.int32(tables), len(ids))
        state, handle, _ = jitted(store).admit(state, ids, tables=tables)
        return np.asarray(store.gather(state, handle))

    first = vectors(0, [1, 2, 1], [0, 0, 1])
    assert len({tuple(row) for row in first}) == 3
    assert len(np.unique(first)) == first.size
    np.testing.assert_array_equal(first, vectors(0, [1, 1, 2], [1, 0, 0])[[1, 2, 0]])
    assert not np.array_equal(first, vectors(1, [1, 2, 1], [0, 0, 1]))
    many = vectors(0, np.arange(16), 0)
    assert -0.5 <= many.min() < -0.4
    assert 0.4 < many.max() < 0.5


def test_lookup_writes_nothing_and_reads_zeros_for_unknown_ids():
    store, state, batches = never_pruned(fj.sparse(optax.sgd(0.1)), 2)
    state = train(store, state, batches)
    before = copy_state(state)
    got = store.lookup(state, np.array([[10_000, -1], [0, 10_001]], np.int32))
    assert got.shape == (2, 2, 8)
    np.testing.assert_array_equal(np.abs(got).sum(-1) > 0, [[0, 0], [1, 0]])
    assert_same_state(before, state)


def test_ids_of_any_shape_and_form_land_alike():
    store = make_store()
    state = store.init(jax.random.key(0))
    ids = np.arange(12, dtype=np.int32).reshape(2, 2, 3)
    state, handle, _ = store.admit(state, ids, tables=np.arange(3))
    for same in (ids.astype(np.uint32), fj.keys_from_int64(ids.astype(np.int64))):
        found = store.find(state, same, tables=np.arange(3))
        np.testing.assert_array_equal(found.entries, handle.entries)
    assert store.gather(state, handle).shape == (2, 2, 3, 8)
    state, handle, info = store.admit(state, np.zeros((0, 3), np.int32))
    state, _ = store.apply_gradients(state, handle, jnp.zeros((0, 3, 8)))
    assert int(info.misses) == 0
    store.check_invariants(state)


def test_a_table_out_of_range_fails_and_is_counted():
    store = make_store()
    state = store.init(jax.random.key(0))
    ids = np.array([1, 1, -1], np.int32)
    state, _, info = store.admit(state, ids, tables=np.array([4, -1, 7]))
    assert (int(info.failed), int(info.admitted)) == (2, 0)
    store.check_invariants(state)


@pytest.mark.slow
def test_prune_keeps_headroom_and_hysteresis_keeps_still():
    config = make_config(num_frames=101, headroom=0.2, initial_chunks=4)
    assert config.target_frames == 80
    store = make_store(num_frames=101, headroom=0.2, initial_chunks=4, hysteresis=0.9)
    run, state = jitted(store), store.init(jax.random.key(0))
    ids = np.arange(25, dtype=np.int32)
    state, handle, _ = run.admit(state, ids)
    state, _ = run.apply(state, handle, jnp.ones((25, 8)))
    before = copy_state((state.pool, state.arena, state.pages.start))
    state, info = run.prune(state)
    assert not bool(info.moved)
    assert float(info.moved_share) == 20 / 80
    assert_same_state(before, (state.pool, state.arena, state.pages.start))
    eager = make_store(num_frames=101, headroom=0.2, initial_chunks=4, hysteresis=0.2)
    state, info = eager.prune_step(state)
    assert bool(info.moved)
    assert int(info.frames_used) == 80


@pytest.mark.parametrize(
    "optimizer",
    [
        fj.sparse(optax.adagrad(0.1)),
        fj.rowwise_adagrad(0.1),
        fj.sparse(optax.sgd(1e30)),
    ],
    ids=["adagrad", "rowwise_adagrad", "sgd"],
)
def test_steps_that_would_spoil_a_frame_are_counted_and_not_taken(optimizer):
    store = make_store(optimizer, initial_chunks=4)
    run, state = jitted(store), store.init(jax.random.key(0))
    ids = np.array([1], np.int32)
    state, handle, _ = run.admit(state, ids)
    counted = 0
    for _ in range(4):
        state, info = run.apply(state, handle, jnp.full((1, 8), 1.25e19))
        counted += int(info.non_finite)
    assert counted > 0
    for leaf in jax.tree.leaves(state.pool):
        assert np.all(np.isfinite(np.asarray(leaf)))
    store.check_invariants(state)


@pytest.mark.parametrize("word", ["table", "high"])
def test_a_handle_of_an_evicted_key_is_stale_whatever_words_it_shares(word):
    store = make_store(num_entries=1, num_ways=1, num_frames=5)
    run, state = jitted(store), store.init(jax.random.key(0))
    first = fj.keys_from_int64(np.array([7], np.int64))
    second, table = first, 1
    if word == "high":
        second, table = fj.keys_from_int64(np.array([7 + (1 << 32)], np.int64)), 0
    state, old, _ = run.admit(state, first, tables=np.int32([0]))
    state, _ = run.apply(state, old, jnp.ones((1, 8)))
    state, new, info = run.admit(state, second, tables=np.int32([table]))
    assert int(info.evicted) == 1
    np.testing.assert_array_equal(new.entries, old.entries)
    before = np.asarray(store.gather(state, new))
    assert np.abs(before).max() > 0
    state, info = run.apply(state, old, jnp.ones((1, 8)))
    assert (int(info.stale), int(info.updated)) == (1, 0)
    np.testing.assert_array_equal(store.gather(state, new), before)


def test_initial_values_differ_by_the_high_word():
    store = make_store(initial_chunks=4)
    ids = fj.keys_from_int64(np.array([7, 7 + (1 << 32)], np.int64))
    state, handle, _ = store.admit(store.init(jax.random.key(0)), ids)
    first, second = np.asarray(store.gather(state, handle))
    assert not np.any(first == second)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_wide_table_numbers_do_not_become_other_tables(dtype):
    store = make_store()
    state = store.init(jax.random.key(0))
    tables = np.array([2**32, 2**32 + 1, 1], dtype)
    state, _, info = store.admit(state, np.int32([1, 1, 1]), tables=tables)
    assert (int(info.admitted), int(info.failed)) == (1, 2)
    for wrong in (None, "a", [0]):
        with pytest.raises(TypeError, match="tables must be"):
            store.find(state, np.int32([1]), tables=wrong)  # pyright: ignore


def test_infos_report_frames_and_threshold():
    store = make_store(ranking="chunks", num_frames=9, initial_chunks=2, headroom=0.3)
    assert store.config.target_frames == 6
    state, handle, info = store.admit(
        store.init(jax.random.key(0)), np.arange(3, dtype=np.int32)
    )
    assert int(info.frames_used) == 6
    state, _ = store.apply_gradients(state, handle, jnp.arange(24.0).reshape(3, 8))
    state, pruned = store.prune_step(state)
    utility = np.sort(np.asarray(decode(state.pages.utility)))[::-1]
    np.testing.assert_allclose(float(pruned.threshold), utility[5], rtol=2.0**-7)
    assert int(pruned.frames_used) == 6


def test_a_single_frame_is_used_whatever_the_headroom():
    assert make_config(num_frames=2, headroom=0.9).target_frames == 1


def test_low_precision_gradients_are_summed_in_float32():
    store = make_store(fj.sparse(optax.sgd(1.0)), initial_scale=0.0)
    ids = np.zeros(512, np.int32)
    state, handle, _ = store.admit(store.init(jax.random.key(0)), ids)
    grads = jnp.full((512, 8), 1.0, jnp.bfloat16)  # bfloat16 stops counting at 256
    state, _ = store.apply_gradients(state, handle, grads)
    assert float(store.lookup(state, ids[:1])[0, 0]) == -512.0


@pytest.mark.slow
def test_wide_mode_does_not_change_the_dtypes_of_the_state():
    store = make_store()
    with jax.enable_x64(True):
        state = store.init(jax.random.key(0))
        dtypes = jax.tree.map(lambda leaf: leaf.dtype, state)
        ids = np.arange(3, dtype=np.int32)
        state, handle, _ = store.admit(state, ids)
        state, _ = store.apply_gradients(state, handle, jnp.ones((3, 8)))
        state, _ = store.prune_step(state)
        assert jax.tree.map(lambda leaf: leaf.dtype, state) == dtypes


def test_no_two_arrays_of_a_state_share_a_buffer():
    keeps_parameters = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params=None: (updates, state)
    )
    store = make_store(fj.sparse(keeps_parameters), embedding_dim=128, chunk_dim=128)
    leaves = jax.tree.leaves(store.init(jax.random.key(0)))
    pointers = {leaf.unsafe_buffer_pointer() for leaf in leaves}
    assert len(pointers) == len(leaves)


def test_ids_of_32_bits_store_no_high_word_and_wider_ones_fail():
    store = make_store(id_bits=32)
    state = store.init(jax.random.key(0))
    ids = fj.keys_from_int64(np.array([7, 7 + (1 << 32), 0xFFFFFFFF, -1], np.int64))
    state, handle, info = store.admit(state, ids)
    assert (int(info.admitted), int(info.misses), int(info.failed)) == (2, 2, 1)
    np.testing.assert_array_equal(np.asarray(handle.entries) >= 0, [1, 0, 1, 0])
    assert state.pages.key_high is None
    store.check_invariants(state)


@pytest.mark.parametrize("num_frames", [1 << 16, (1 << 16) + 1])
def test_the_last_frame_of_a_full_pool_is_found(num_frames):
    store = make_store(
        embedding_dim=1, chunk_dim=1, num_entries=1 << 17, num_frames=num_frames
    )
    run, state = jitted(store), store.init(jax.random.key(0))
    ids = jnp.arange(num_frames + 100, dtype=jnp.int32)
    state, handle, info = run.admit(state, ids)
    assert int(info.frames_used) == num_frames - 1
    assert np.count_nonzero(store.gather(state, handle)) == num_frames - 1
    state, _ = run.prune(state)
    store.check_invariants(state)


def test_table_scale_is_that_of_the_tables_of_the_keys():
    fields = {"num_tables": 3, "initial_chunks": 4}
    scales = (1.0, 0.25, 0.0)
    plain = make_store(fj.sparse(optax.adam(0.1)), **fields)
    scaled = make_store(fj.sparse(optax.adam(0.1), table_scale=scales), **fields)
    ids, tables = np.int32([5, 5, 5, 6, -1]), np.int32([0, 1, 2, 1, 2])
    grads = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    moves = []
    for store in (plain, scaled):
        state = store.init(jax.random.key(0))
        state, handle, _ = store.admit(state, ids, tables=tables)
        before = store.gather(state, handle)
        state, _ = store.apply_gradients(state, handle, jnp.asarray(grads))
        moves.append(np.asarray(store.gather(state, handle) - before))
    expected = moves[0] * np.float32([1, 0.25, 0, 0.25, 0])[:, None]
    np.testing.assert_allclose(moves[1], expected, **tolerance(1))
    np.testing.assert_array_equal(moves[1][2], 0)
    assert np.abs(moves[0][:4]).min() > 0.05
    with pytest.raises(ValueError, match="each of 4 tables, got 3"):
        make_store(scaled.optimizer, num_tables=4)


def test_vectors_are_prefixes_and_longer_the_more_they_are_worth():
    store = make_store(
        num_frames=13, headroom=0.0, scorer=fj.scorers.frequency(), length_alpha=1.0
    )
    run, state = jitted(store), store.init(jax.random.key(0))
    ids = np.repeat(np.arange(4, dtype=np.int32), [12, 6, 3, 1])
    state, handle, _ = run.admit(state, ids)
    state, _ = run.apply(state, handle, jnp.ones((22, 8)))
    state, info = run.prune(state)
    # Priorities: 12 6 4 3 | 6 3 2 1.5 | 3 1.5 1 .75 | 1 .5 ...; the best 12 of 16.
    lengths = np.count_nonzero(run.lookup(state, np.arange(4, dtype=np.int32)), axis=1)
    np.testing.assert_array_equal(lengths, [8, 8, 6, 2])
    np.testing.assert_allclose(float(info.threshold), 1.0, rtol=1e-3)


def test_padding_with_the_bits_of_a_tracked_id_reads_nothing():
    store = make_store()
    state = store.init(jax.random.key(0))
    last = jnp.uint32([0xFFFFFFFF])
    state, _, _ = store.admit(state, last)
    for ids, is_tracked in ((last, True), (jnp.int32([-1]), False)):
        for read in (store.lookup, lambda *at: store.gather(at[0], store.find(*at))):
            assert np.any(np.asarray(read(state, ids))) == is_tracked
