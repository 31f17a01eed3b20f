"""Ids that are numbers of rows: `table_sizes`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from fiited_jax.sizes import SHORT_FRAMES
from helpers import assert_same_state, copy_state, jitted, make_config, make_store

SIZES = (3, 0, 5, 4)
OPTIMIZER = fj.sparse(optax.adagrad(0.5))
# All rows, and what is none: too large, of a table without rows, of no table, padding.
ROWS = [(t, row) for t, size in enumerate(SIZES) for row in range(size)]
NO_ROWS = [(0, 3), (1, 0), (2, 1 << 20), (4, 0), (0, -1)]


def rows_store(**fields):
    fields = {"num_entries": sum(SIZES), "num_frames": 100} | fields
    return make_store(OPTIMIZER, table_sizes=SIZES, **fields)


def columns(pairs):
    tables, ids = np.array(pairs, np.int32).T
    return ids, tables


def test_every_row_has_the_entry_of_its_number():
    store = rows_store()
    run, state = jitted(store), store.init(jax.random.key(0))
    ids, tables = columns(ROWS + NO_ROWS)
    state, handle, info = run.admit(state, ids, tables=tables)
    assert handle.entries.tolist() == [*range(12), *[-1] * 5]
    assert (int(info.admitted), int(info.failed), int(info.misses)) == (12, 4, 12)
    state, _ = run.apply(state, handle, jnp.ones((17, 8)))
    store.check_invariants(state)
    state, handle, info = run.admit(state, ids, tables=tables)
    assert (int(info.hits), int(info.admitted), int(info.evicted)) == (12, 0, 0)
    uses = store.memory_report(state).tables
    assert [use.entries for use in uses] == list(SIZES)


def test_values_are_those_of_the_same_keys_in_a_hashed_store():
    by_row, hashed = rows_store(), make_store(OPTIMIZER, num_frames=100)
    ids, tables = columns(ROWS)
    grads = np.random.default_rng(0).normal(size=(5, len(ids), 8)).astype(np.float32)
    found = []
    for store in (by_row, hashed):
        run, state = jitted(store), store.init(jax.random.key(3))
        for grad in grads:
            state, handle, _ = run.admit(state, ids, tables=tables)
            state, _ = run.apply(state, handle, grad)
            state, _ = run.prune(state)
        found.append(np.asarray(run.lookup(state, ids, tables=tables)))
    assert np.all(found[0] != 0)  # with room for all chunks
    np.testing.assert_array_equal(*found)


def test_wide_ids_are_no_rows():
    store = rows_store()
    state = store.init(jax.random.key(0))
    ids = fj.keys_from_int64(np.array([1, 1 + (1 << 32), -1]))
    state, handle, info = store.admit(state, ids)
    assert handle.entries.tolist() == [1, -1, -1]
    assert int(info.failed) == 1


@pytest.mark.parametrize("ranking", ["lengths", "chunks"])
def test_a_row_without_chunk_and_utility_is_new(ranking):
    store = rows_store(num_frames=2, ranking=ranking)
    run, state = jitted(store), store.init(jax.random.key(0))
    ids, tables = columns(ROWS[:2])
    state, handle, info = run.admit(state, ids, tables=tables)
    assert int(info.admitted) == 2
    assert store.find(state, ids, tables=tables).entries.tolist() == [0, -1]
    # Its handle holds: a gradient makes it known.
    state, info = run.apply(state, handle, jnp.ones((2, 8)))
    assert (int(info.updated), int(info.stale)) == (1, 0)
    assert store.find(state, ids, tables=tables).entries.tolist() == [0, 1]
    store.check_invariants(state)


def test_one_row_in_many_lanes_is_admitted_once():
    store = rows_store(initial_chunks=2)
    state, handle, info = store.admit(
        store.init(jax.random.key(0)), np.full(9, 4, np.int32), tables=2
    )
    assert handle.entries.tolist() == [7] * 9
    assert (int(info.admitted), int(info.frames_used)) == (1, 2)
    store.check_invariants(state)


def test_rows_can_be_pinned():
    store = rows_store(num_frames=9, headroom=0.0, hysteresis=0.0)
    run, state = jitted(store), store.init(jax.random.key(0))
    ids, tables = columns(ROWS)
    state, handle, _ = run.admit(state, ids, tables=tables)
    state, _ = run.apply(state, handle, jnp.ones((12, 8)))
    state, pinned = store.pin(state, np.array([3, 9], np.int32), tables=3)
    assert pinned.tolist() == [True, False]
    store.check_invariants(state)
    state, _ = run.prune(state)
    store.check_invariants(state)
    vector = store.lookup(state, np.array([3], np.int32), tables=3)
    assert np.all(np.asarray(vector) != 0)


def test_rows_can_be_pinned_before_they_come():
    store = rows_store(num_frames=9, initial_chunks=0, headroom=0.0, hysteresis=0.0)
    run, state = jitted(store), store.init(jax.random.key(0))
    state, _, _ = run.admit(state, np.array([1], np.int32), tables=2)
    state, pinned = store.pin(state, np.array([1, 2], np.int32), tables=2)
    assert pinned.tolist() == [True, True]
    state, info = run.prune(state)
    assert int(info.granted) == 8
    assert np.all(np.asarray(run.lookup(state, np.array([1, 2], np.int32), tables=2)))
    store.check_invariants(state)


def test_a_handle_of_another_store_is_stale():
    by_row, hashed = rows_store(), make_store(OPTIMIZER, num_frames=100)
    ids = np.array([2, 1, 0], np.int32)
    _, handle, _ = hashed.admit(hashed.init(jax.random.key(0)), ids)
    state = by_row.init(jax.random.key(0))
    state, own, _ = by_row.admit(state, ids)
    assert handle.entries.tolist() != own.entries.tolist()
    state, info = by_row.apply_gradients(state, handle, jnp.ones((3, 8)))
    assert (int(info.updated), int(info.stale)) == (0, 3)
    state, info = by_row.apply_gradients(state, own, jnp.ones((3, 8)))
    assert (int(info.updated), int(info.stale)) == (3, 0)


def test_dense_rows_that_are_worth_nothing_are_not_kept():
    config = make_config(
        table_sizes=SIZES, num_entries=12, num_frames=5, headroom=0.0, length_alpha=0.0
    )
    table = np.zeros((5, 8), np.float32)
    table[0], table[3, 0] = 1.0, 2.0
    store, state, info = fj.from_dense(
        {2: table}, config, OPTIMIZER, key=jax.random.key(0)
    )
    assert (info.kept_keys, info.dropped_keys, info.kept_chunks) == (2, 3, 4)
    assert store.memory_report(state).tables[2].entries == 2


def test_dense_tables_are_taken_in_row_by_row():
    rng = np.random.default_rng(0)
    tables = {0: rng.normal(size=(3, 8)), 2: rng.normal(size=(4, 8))}
    tables = {number: array.astype(np.float32) for number, array in tables.items()}
    config = make_config(
        table_sizes=SIZES, num_entries=12, num_frames=100, headroom=0.0
    )
    store, state, info = fj.from_dense(
        tables,
        config,
        OPTIMIZER,
        key=jax.random.key(0),
        ids={2: np.array([4, 0, 1, 3])},
    )
    store.check_invariants(state)
    assert (info.kept_keys, info.dropped_chunks) == (7, 0)
    got = store.lookup(state, np.array([4, 0, 1, 3], np.int32), tables=2)
    np.testing.assert_array_equal(got, tables[2])
    held = copy_state(state)
    assert_same_state(store.prune_step(state)[0].pool, held.pool)
    with pytest.raises(ValueError, match=r"ids\[0\].*table_sizes\[0\]=3, row 3 is 3"):
        fj.from_dense(
            [np.ones((4, 8), np.float32)], config, OPTIMIZER, key=jax.random.key(0)
        )
    with pytest.raises(ValueError, match=r"row 1 is 4294967296"):
        fj.from_dense(
            {2: tables[2][:2]},
            config,
            OPTIMIZER,
            key=jax.random.key(0),
            ids={2: np.array([0, 1 << 32])},
        )


def test_entries_take_no_bytes_for_keys():
    store = rows_store()
    assert store.config.entry_bytes == 5
    report = store.memory_report(store.init(jax.random.key(0)))
    assert (report.keys, report.runs, report.utilities) == (0, 3 * 12, 2 * 12)


def budgeted(budget, **fields):
    arguments = {
        "embedding_dim": 16,
        "chunk_dim": 1,
        "num_tables": 4,
        "table_sizes": (300, 0, 20_000, 1),
        "optimizer": OPTIMIZER,
    }
    return fj.EmbeddingConfig.from_budget(budget, **(arguments | fields))


@pytest.mark.parametrize("budget", [200_000, 624_000, 640_000, 700_000, 2_000_000])
def test_a_budget_is_filled_around_the_rows(budget):
    config = budgeted(budget)
    assert config.num_entries == 20_301
    used = fj.predict_memory(config, OPTIMIZER).all_in_bytes
    assert used <= budget
    if config.num_frames == SHORT_FRAMES:  # one more, and all starts are longer
        assert used + 2 * config.num_entries + 8 * 128 > budget
    else:
        assert used + 2 * 8 * 128 > budget
    assert config.start_dtype == (np.uint16 if budget < 650_000 else np.int32)


def test_a_budget_holds_no_more_than_all_chunks_of_all_rows():
    config = budgeted("1GiB")
    assert 16 * 20_301 < config.target_frames < 16 * 20_301 + 3


def test_short_tables_are_given_no_more_frames_than_they_use():
    config = budgeted("64MiB", table_dims=(1, 16, 2, 16), headroom=0.0)
    assert config.num_frames == 300 * 1 + 20_000 * 2 + 16 + 2


def test_the_smallest_budget_is_told_and_works():
    with pytest.raises(ValueError, match="an entry") as error:
        budgeted(10_000)
    assert "an entry for each of 20301 rows of table_sizes" in str(error.value)
    smallest = int(str(error.value).split(" bytes")[0].split()[-1])
    config = budgeted(smallest)
    assert fj.predict_memory(config, OPTIMIZER).all_in_bytes <= smallest
    with pytest.raises(ValueError, match="an entry for each"):
        budgeted(smallest - 1)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"table_sizes": [3, 0, 5, 4]}, TypeError, "table_sizes must be a tuple"),
        ({"table_sizes": (12,)}, ValueError, "num_tables=4 elements, got 1"),
        ({"table_sizes": (3, -1, 5, 5)}, ValueError, r"table_sizes\[1\].*-1"),
        ({"table_sizes": (3, 1.0, 4, 4)}, TypeError, r"table_sizes\[1\].*1.0"),
        ({"table_sizes": (0, 0, 0, 0)}, ValueError, "must hold a row"),
        ({"num_entries": 64}, ValueError, "sum of table_sizes, 12; got 64"),
        ({"filter_slots": 9}, ValueError, "filter_slots must be 0.*got 9"),
    ],
)
def test_bad_rows_are_named(fields, error, words):
    with pytest.raises(error, match=words):
        make_config(**({"table_sizes": SIZES, "num_entries": 12} | fields))


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"frames_per_entry": 2.0}, ValueError, "frames_per_entry must be None"),
        ({"num_ids": 9}, ValueError, "num_ids must be None with table_sizes, got 9"),
        ({"filter_share": 0.1}, ValueError, "filter_share must be.*got 0.1"),
        ({"table_sizes": 5}, TypeError, "table_sizes must be a tuple"),
        ({"table_sizes": (1, 2, 3, "a")}, TypeError, r"table_sizes\[3\]"),
    ],
)
def test_what_does_not_go_with_rows_is_named(fields, error, words):
    with pytest.raises(error, match=words):
        budgeted("1MiB", **fields)


def test_a_state_of_other_rows_is_refused():
    store = rows_store()
    other = make_store(OPTIMIZER, table_sizes=(5, 0, 3, 4), num_entries=12)
    with pytest.raises(ValueError, match="state must be one that this store"):
        store.prune_step(other.init(jax.random.key(0)))
