"""The admission filter against a stream that never shows ids of one occurrence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiited_jax import training
from fiited_jax.data import DemoStream
from helpers import jitted, make_store
from one_hit import WithoutOneHitIds


def mean_auc(stream, **fields):
    aucs = []
    for seed in range(3):
        options = training.TrainOptions(seed=seed, compression=10.0, **fields)
        trainer = training.Trainer(options, stream)
        aucs.append(trainer.train(training.SilentReporter()).test.auc)
    return np.mean(aucs)


@pytest.mark.slow
def test_ids_of_one_occurrence_cost_next_to_nothing():
    stream = DemoStream(40_000, 40_000, lifetime=2_000)
    ideal = WithoutOneHitIds(stream)
    assert ideal.one_hit_share > 0.7
    loss = mean_auc(ideal) - mean_auc(stream, filter_share=0.05)
    assert loss < 0.0005


@pytest.mark.slow
def test_a_flood_of_new_ids_does_not_evict_what_has_grown():
    """Known keys of worth stay with a filter, and go without one."""

    def survivors(filter_slots):
        store = make_store(num_entries=64, num_frames=257, filter_slots=filter_slots)
        run, state = jitted(store), store.init(jax.random.key(0))
        good = np.arange(32, dtype=np.int32)
        for _ in range(4):
            state, handle, _ = run.admit(state, good)
            state, _ = run.apply(state, handle, jnp.ones((32, 8)))
        state, _ = run.prune(state)
        held = np.asarray(store.find(state, good).entries) >= 0
        flood = np.arange(1000, 1512, dtype=np.int32)
        state, _, info = run.admit(state, flood)
        still = np.asarray(store.find(state, good).entries) >= 0
        return held.sum(), still.sum(), int(info.filtered), int(info.failed)

    held, still, filtered, failed = survivors(4096)
    assert held == still >= 28
    assert filtered > 400
    assert failed == 0
    held, still, filtered, failed = survivors(0)
    assert still == 0
    assert filtered == 0
    assert failed > 0
