import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from helpers import jitted, make_store


@pytest.mark.parametrize("chunk_dim", [1, 2, 8])
def test_report_prediction_and_live_arrays_agree_at_every_step(chunk_dim):
    optimizer = fj.sparse(optax.adam(0.1))
    config = fj.EmbeddingConfig.from_budget(
        40_000, embedding_dim=8, chunk_dim=chunk_dim, optimizer=optimizer, num_tables=2
    )
    store = fj.EmbeddingStore(config, optimizer)
    run, state = jitted(store), store.init(jax.random.key(0))
    predicted = fj.predict_memory(config, optimizer, num_ids=1000)
    rng = np.random.default_rng(0)
    for _ in range(6):
        ids = rng.integers(0, 1000, 64).astype(np.int32)
        state, handle, _ = run.admit(state, ids, tables=ids % 2)
        state, _ = run.apply(state, handle, jnp.ones((64, 8)))
        state, _ = run.prune(state)
        report = store.memory_report(state, num_ids=1000)
        live = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        assert live == report.all_in_bytes <= 40_000
        assert sum(report.components.values()) == report.all_in_bytes
        assert predicted.components == report.components
    assert report.dense_bytes == 1000 * (8 + 2 * 8 + 1) * 4
    assert report.all_in_ratio == report.dense_bytes / live
    assert report.values_ratio == 1000 * 8 * 4 / state.pool.values.nbytes


def test_tables_are_counted_by_hand():
    store = make_store(initial_chunks=2)
    state = store.init(jax.random.key(0))
    ids = np.array([1, 2, 3, 1], np.int32)
    state, _, _ = store.admit(state, ids, tables=np.array([0, 0, 2, 2]))
    tables = store.memory_report(state).tables
    assert [use.entries for use in tables] == [2, 0, 2, 0]
    assert [use.frames for use in tables] == [4, 0, 4, 0]
    assert [use.mean_length for use in tables] == [4.0, 0.0, 4.0, 0.0]


def test_a_report_needs_ids_to_compare_with():
    store = make_store()
    state = store.init(jax.random.key(0))
    assert store.memory_report(state).dense_bytes is None
    with pytest.raises(ValueError, match="num_ids"):
        store.memory_report(state, num_ids=0)


def test_prune_temporaries_are_of_the_order_of_the_state():
    small, large = (
        make_store(num_entries=1 << 12, num_frames=frames).prune_temporary_bytes()
        for frames in (1 << 12, 1 << 15)
    )
    assert 0 < small < large


@pytest.mark.parametrize(
    ("fields", "num_bytes"),
    [
        ({"id_bits": 32}, 12),
        ({"id_bits": 32, "chunk_dim": 1}, 12),
        ({"id_bits": 64}, 16),
        ({"id_bits": 32, "ranking": "chunks"}, 18),
        ({"id_bits": 32, "num_tables": 256}, 13),
        ({"id_bits": 32, "num_frames": 1 << 16}, 10),
    ],
)
def test_an_entry_takes_so_many_bytes(fields, num_bytes):
    store = make_store(**{"num_frames": (1 << 16) + 1, **fields})
    report = store.memory_report(store.init(jax.random.key(0)))
    assert report.bytes_per_entry == store.config.entry_bytes == num_bytes


@pytest.mark.parametrize("ranking", ["lengths", "chunks"])
def test_metadata_is_a_small_part_of_wide_vectors(ranking):
    optimizer = fj.sparse(optax.adagrad(0.1))
    config = fj.EmbeddingConfig.from_budget(
        "16MiB",
        embedding_dim=64,
        chunk_dim=16,
        optimizer=optimizer,
        num_tables=26,
        id_bits=32,
        ranking=ranking,
        frames_per_entry=2.0,
    )
    report = fj.predict_memory(config, optimizer)
    assert report.metadata_share <= 0.08
    pool = report.values + report.slots
    assert report.metadata_share == pytest.approx(1 - pool / report.all_in_bytes)
