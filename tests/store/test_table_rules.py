"""What is ruled per table: how long vectors may be, and what each table gets first."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from helpers import assert_same_state, copy_state, jitted, make_config, make_store

BOTH = pytest.mark.parametrize("ranking", ["lengths", "chunks"])
DIMS = (2, 8, 4, 6)
IDS, TABLES = np.arange(32, dtype=np.int32), np.arange(32, dtype=np.int32) % 4
ALLOWED = np.arange(8) < np.array(DIMS)[TABLES][:, None]


def short_store(**fields):
    rules = {"table_dims": DIMS, "num_frames": 400, "headroom": 0.0}
    return make_store(**{"scorer": fj.scorers.frequency(), **rules, **fields})


def train(store, state, grads=None):
    """Admit all ids, step and prune."""
    run = jitted(store)
    state, handle, _ = run.admit(state, IDS, tables=TABLES)
    grads = jnp.ones((32, 8)) if grads is None else grads
    state, _ = run.apply(state, handle, grads)
    return run.prune(state)[0]


@BOTH
def test_vectors_are_as_long_as_their_table_allows(ranking):
    store = short_store(ranking=ranking, initial_chunks=4)
    run, state = jitted(store), store.init(jax.random.key(0))
    state, _, info = run.admit(state, IDS, tables=TABLES)
    for _ in range(2):
        store.check_invariants(state)
        vectors = np.asarray(run.lookup(state, IDS, tables=TABLES))
        np.testing.assert_array_equal(vectors != 0, ALLOWED)
        state = train(store, state)
    assert int(info.frames_used) == ALLOWED.sum() // 2
    uses = store.memory_report(state).tables
    assert [use.mean_length for use in uses] == list(DIMS)


@BOTH
def test_gradients_behind_a_vector_are_ignored(ranking):
    store = short_store(ranking=ranking, scorer=fj.scorers.grad_norm())
    state = train(store, store.init(jax.random.key(0)))
    left, right = (
        train(store, copy_state(state), jnp.asarray(np.where(ALLOWED, 1.0, behind)))
        for behind in (0.0, np.nan)
    )
    assert_same_state(left, right)


@BOTH
def test_a_pinned_key_gets_what_its_table_allows(ranking):
    store = short_store(ranking=ranking)
    state = train(store, store.init(jax.random.key(0)))
    state, _ = store.pin(state, IDS, tables=TABLES)
    state = train(store, state)
    store.check_invariants(state)
    vectors = store.lookup(state, IDS, tables=TABLES)
    np.testing.assert_array_equal(np.asarray(vectors) != 0, ALLOWED)


def test_the_shared_pool_reads_zeros_behind_a_vector():
    store = short_store(fallback="shared", num_shared=3, initial_chunks=0)
    state = store.init(jax.random.key(0))
    vectors = store.lookup(state, IDS, tables=TABLES)
    np.testing.assert_array_equal(np.asarray(vectors) != 0, ALLOWED)


@BOTH
def test_dense_tables_of_several_dimensions_are_taken_in(ranking):
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(8, dim)).astype(np.float32) for dim in DIMS]
    config = make_config(
        table_dims=DIMS, num_frames=400, headroom=0.0, ranking=ranking, length_alpha=0.0
    )
    worth = [np.ones((8, dim // 2)) for dim in DIMS] if ranking == "chunks" else None
    store, state, info = fj.from_dense(
        tables, config, fj.rowwise_adagrad(0.1), key=jax.random.key(0), utilities=worth
    )
    store.check_invariants(state)
    for number, table in enumerate(tables):
        got = store.lookup(state, np.arange(8, dtype=np.int32), tables=number)
        np.testing.assert_array_equal(np.asarray(got)[:, : DIMS[number]], table)
        assert not np.any(np.asarray(got)[:, DIMS[number] :])
    assert (info.kept_chunks, info.dropped_chunks) == (8 * sum(DIMS) // 2, 0)
    if ranking == "chunks":  # no worth behind the end of a vector
        owner = np.asarray(state.pages.owner)
        worth = np.asarray(state.pages.utility).reshape(-1, 4)[owner > 0] > 0
        limit = np.array(DIMS)[owner[owner > 0] - 1] // 2
        np.testing.assert_array_equal(worth, np.arange(4) < limit[:, None])
    with pytest.raises(ValueError, match=r"tables\[0\].*\[num_rows, 2\], the table_di"):
        fj.from_dense([tables[1]], config, store.optimizer, key=jax.random.key(0))


def test_dense_bytes_are_those_of_every_table():
    optimizer = fj.sparse(optax.adagrad(0.1))
    config = make_config(table_dims=DIMS)
    report = fj.predict_memory(config, optimizer, num_ids=[10, 20, 0, 1])
    assert report.dense_values_bytes == 4 * (10 * 2 + 20 * 8 + 1 * 6)
    assert report.dense_bytes == 2 * report.dense_values_bytes
    for num_ids, error in (
        (31, "num_ids must be given for each of 4 tables"),
        ([1, 2], "each of 4 tables"),
        ([1, 2, 3, -1], "at least 1"),
        ([1, 2, 3, 4.5], "integers, got 4.5"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            fj.predict_memory(config, optimizer, num_ids=num_ids)
    same = make_config(table_dims=(4, 4, 4, 4))
    report = fj.predict_memory(same, optimizer, num_ids=31)
    assert report.dense_values_bytes == 4 * 31 * 4


def frames_by_table(floors, times):
    """Frames of tables whose ids come so often, at 20 frames."""
    store = make_store(
        num_frames=21,
        headroom=0.0,
        hysteresis=0.0,
        length_alpha=0.0,
        table_floors=floors,
        scorer=fj.scorers.frequency(),
    )
    run, state = jitted(store), store.init(jax.random.key(0))
    tables = np.repeat(np.arange(4, dtype=np.int32), 8)
    ids = np.tile(np.arange(8, dtype=np.int32), 4)
    order = np.repeat(np.arange(32), np.array(times)[tables])
    for _ in range(2):
        state, handle, _ = run.admit(state, ids[order], tables=tables[order])
        state, _ = run.apply(state, handle, jnp.ones((len(order), 8)))
        state, info = run.prune(state)
        store.check_invariants(state)
    uses = store.memory_report(state).tables
    return [use.frames for use in uses], float(info.threshold)


@pytest.mark.slow
def test_every_table_gets_its_floor_first():
    times = (9, 1, 2, 3)
    frames, open_threshold = frames_by_table(None, times)
    assert frames == [20, 0, 0, 0]
    frames, threshold = frames_by_table((0.0, 0.25, 0.1, 0.0), times)
    assert frames == [13, 5, 2, 0]
    assert threshold < open_threshold  # the lowest that was chosen
    frames, _ = frames_by_table((0.0, 0.25, 0.25, 0.5), times)
    assert frames == [0, 5, 5, 10]
    # A floor that a table would get anyway changes nothing.
    frames, _ = frames_by_table((0.5, 0.0, 0.0, 0.0), times)
    assert frames == [20, 0, 0, 0]


@pytest.mark.slow
def test_pinned_keys_come_before_floors():
    store = make_store(
        table_floors=(0.0, 0.5, 0.5, 0.0), num_frames=21, headroom=0.0, hysteresis=0.0
    )
    state = train(store, store.init(jax.random.key(0)))
    pinned, _ = store.pin(state, np.array([0, 4], np.int32))
    state = train(store, pinned)
    store.check_invariants(state)
    assert np.all(np.asarray(store.lookup(state, np.array([0, 4], np.int32))) != 0)
    assert [use.frames for use in store.memory_report(state).tables] == [8, 10, 2, 0]


@pytest.mark.slow
def test_the_filter_guards_what_a_floor_keeps():
    store = make_store(
        num_entries=32,
        num_tables=2,
        num_frames=33,
        headroom=0.0,
        hysteresis=0.0,
        length_alpha=0.0,
        table_floors=(0.5, 0.5),
        filter_slots=1000,
        scorer=fj.scorers.frequency(),
    )
    run, state = jitted(store), store.init(jax.random.key(0))
    ids = np.arange(32, dtype=np.int32)
    order = np.repeat(ids, np.where(ids % 2, 2, 20))  # table 1 is the colder
    for _ in range(3):
        state, handle, _ = run.admit(state, order, tables=order % 2)
        state, _ = run.apply(state, handle, jnp.ones((len(order), 8)))
        state, _ = run.prune(state)
    before = [use.entries for use in store.memory_report(state).tables]
    state, _, info = run.admit(state, np.arange(100, 452, dtype=np.int32), tables=0)
    assert int(info.filtered) > 300
    after = store.memory_report(state).tables
    # Keys with no more than first chunks may go, those that the floor gave more stay.
    assert [use.frames for use in after] == [16, 16]
    assert after[1].entries >= 4 <= before[1]


def test_a_run_longer_than_its_table_allows_is_told():
    store = make_store(table_dims=(8, 8, 8, 8))
    state, _, _ = store.admit(store.init(jax.random.key(0)), IDS, tables=TABLES)
    state = train(store, state)
    with pytest.raises(ValueError, match="table 0 must have at most its 1 chunks"):
        make_store(table_dims=(2, 8, 8, 8)).check_invariants(state)


@pytest.mark.parametrize(
    ("field", "value", "error", "words"),
    [
        ("table_dims", [8, 8, 8, 8], TypeError, "tuple"),
        ("table_dims", (8, 8), ValueError, "num_tables=4 elements, got 2"),
        ("table_dims", (8, 3, 8, 8), ValueError, r"table_dims\[1\].*chunk_dim=2.*3"),
        ("table_dims", (8, 8, 8, 10), ValueError, "embedding_dim=8, got 10"),
        ("table_dims", (8, 0, 8, 8), ValueError, "at least 1, got 0"),
        ("table_floors", (0.5, 0.5, 0.5, 0.0), ValueError, "come to 1.5"),
        ("table_floors", (0.5, -0.1, 0.0, 0.0), ValueError, r"\[1\].*-0.1"),
        ("table_floors", (0.5, "a", 0.0, 0.0), TypeError, r"\[1\].*'a'"),
        ("table_floors", (1.0,), ValueError, "num_tables=4 elements, got 1"),
        ("value_dtype", "float16", ValueError, "'bfloat16', got 'float16'"),
    ],
)
def test_bad_rules_are_named(field, value, error, words):
    with pytest.raises(error, match=words):
        make_config(**{field: value})
