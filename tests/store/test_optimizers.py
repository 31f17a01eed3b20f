"""What every optimizer promises, over one table of them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from helpers import make_store, tolerance

DIM, BATCH, STEPS = 8, 24, 8
OFTEN, RARE = np.arange(6), np.arange(6, 12)  # in every batch; in some
EVERYONE = np.concatenate([OFTEN, RARE]).astype(np.int32)

SCHEDULE = optax.exponential_decay(0.3, transition_steps=1, decay_rate=0.8)


def adagrad_of_rows(learning_rate, start=0.0, eps=1e-8):
    """Row-wise Adagrad by its formula, `[rows, C]`."""

    def init(params):
        return 0, np.full((len(params), 1), start)

    def update(grads, state, params=None):
        count, totals = state
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        totals = totals + np.mean(np.square(grads), axis=-1, keepdims=True)
        return -rate * grads / (np.sqrt(totals) + eps), (count + 1, totals)

    return optax.GradientTransformation(init, update)


class Case(NamedTuple):
    """An optimizer, and what it is compared with.

    Attributes:
      optimizer: of the store.
      dense: of a dense table.
      slots: arrays per frame, of C values and of one.
      moves_untouched: whether `dense` moves rows that are not in a batch.
      at: the transformation of a step of the store, where `dense` counts its own.
    """

    optimizer: fj.SparseOptimizer
    dense: optax.GradientTransformation
    slots: tuple[int, int]
    moves_untouched: bool = False
    at: Callable[[int], optax.GradientTransformation] | None = None


def lifted(transformation, slots, moves_untouched=False):
    return Case(fj.sparse(transformation), transformation, slots, moves_untouched)


CASES = {
    "sgd": lifted(optax.sgd(0.1), (0, 0)),
    "momentum": lifted(optax.sgd(0.1, momentum=0.9), (1, 0), True),
    "adagrad": lifted(optax.adagrad(0.3, eps=0.1), (1, 0)),
    "adam": lifted(optax.adam(0.1), (2, 1), True),
    "adamw": lifted(optax.adamw(0.1, weight_decay=0.1), (2, 1), True),
    "rmsprop": lifted(optax.rmsprop(0.1), (1, 0)),
    "lion": lifted(optax.lion(0.05), (1, 1), True),
    "clip": lifted(optax.chain(optax.clip(0.5), optax.sgd(0.3)), (0, 0)),
    "counted": lifted(optax.sgd(SCHEDULE), (0, 1)),
    "rowwise_adagrad": Case(
        fj.rowwise_adagrad(0.3, initial_accumulator=0.25, eps=1e-4),
        adagrad_of_rows(0.3, 0.25, 1e-4),
        (0, 1),
    ),
    "scheduled": Case(
        fj.sparse(optax.adam, learning_rate=SCHEDULE, b1=0.8),
        optax.adam(SCHEDULE, b1=0.8),
        (2, 1),
        moves_untouched=True,
        at=lambda step: optax.adam(float(SCHEDULE(step)), b1=0.8),
    ),
    "scheduled_rowwise": Case(
        fj.rowwise_adagrad(SCHEDULE),
        adagrad_of_rows(SCHEDULE),
        (0, 1),
        at=lambda step: adagrad_of_rows(float(SCHEDULE(step))),
    ),
}
RUNS = [(name, 2) for name in CASES]
RUNS += [("adagrad", 1), ("adam", 8), ("rowwise_adagrad", 8)]


class Run(NamedTuple):
    """A training run in which no chunk lacks a frame.

    Attributes:
      ids: `[T, B]`, with duplicates.
      summed: `[T, R, D]` gradients of the rows.
      vectors: `[T + 1, R, D]` before the first step and after each.
    """

    ids: np.ndarray
    summed: np.ndarray
    vectors: np.ndarray


@functools.cache
def trained(name, chunk_dim):
    num_chunks = DIM // chunk_dim
    store = make_store(
        CASES[name].optimizer,
        embedding_dim=DIM,
        chunk_dim=chunk_dim,
        num_frames=1 + EVERYONE.size * num_chunks,
        initial_chunks=num_chunks,
        initial_scale=0.5,
    )
    rng = np.random.default_rng(chunk_dim)
    shape = (STEPS, BATCH - OFTEN.size - 3)
    ids = np.concatenate(
        [
            np.tile(OFTEN, (STEPS, 1)),
            rng.choice(OFTEN, shape),
            rng.choice(RARE, (STEPS, 3)),
        ],
        axis=1,
    ).astype(np.int32)
    grads = rng.normal(size=(STEPS, BATCH, DIM)).astype(np.float32)

    @jax.jit
    def run(key, ids, grads):
        state, handle, info = store.admit(store.init(key), EVERYONE)

        def step(state, batch):
            state, _ = store.apply_gradients(
                state, store.find(state, batch[0]), batch[1]
            )
            return state, store.gather(state, handle)

        _, vectors = jax.lax.scan(step, state, (ids, grads))
        return store.gather(state, handle), vectors, info.failed

    first, vectors, failed = run(jax.random.key(1), ids, grads)
    assert int(failed) == 0
    assert np.abs(first).min() > 0
    summed = np.zeros((STEPS, EVERYONE.size, DIM), np.float32)
    for step in range(STEPS):
        np.add.at(summed[step], ids[step], grads[step])
    return Run(ids, summed, np.concatenate([first[None], vectors]))


def frames(rows, chunk_dim):
    return jnp.asarray(rows).reshape(-1, chunk_dim)


@pytest.mark.parametrize(("name", "chunk_dim"), RUNS)
def test_ids_of_every_batch_are_as_rows_of_a_dense_table(name, chunk_dim):
    run, case = trained(name, chunk_dim), CASES[name]
    table = frames(run.vectors[0], chunk_dim)
    slots = case.dense.init(table)
    for step in range(STEPS):
        grads = frames(run.summed[step], chunk_dim)
        updates, slots = case.dense.update(grads, slots, table)
        table = optax.apply_updates(table, updates)
        np.testing.assert_allclose(
            run.vectors[step + 1, OFTEN],
            np.reshape(table, (-1, DIM))[OFTEN],
            **tolerance(BATCH * (step + 1)),
        )


@pytest.mark.parametrize(("name", "chunk_dim"), RUNS)
def test_counters_and_moments_are_of_the_touches_of_a_frame(name, chunk_dim):
    run, case = trained(name, chunk_dim), CASES[name]
    at = case.at or (lambda step: case.dense)
    for row in RARE:
        touched = [step for step in range(STEPS) if row in run.ids[step]]
        assert 0 < len(touched) < STEPS
        vector = frames(run.vectors[0, row], chunk_dim)
        slots = at(0).init(vector)
        for step in touched:
            grad = frames(run.summed[step, row], chunk_dim)
            updates, slots = at(step).update(grad, slots, vector)
            vector = optax.apply_updates(vector, updates)
        np.testing.assert_allclose(
            run.vectors[-1, row],
            np.reshape(vector, -1),
            **tolerance(BATCH * STEPS),
        )


@pytest.mark.parametrize("name", CASES)
def test_untouched_frames_do_not_move(name):
    run, case = trained(name, 2), CASES[name]
    is_idle = np.stack([~np.isin(EVERYONE, ids) for ids in run.ids])
    before, after = run.vectors[:-1], run.vectors[1:]
    np.testing.assert_array_equal(after[is_idle], before[is_idle])
    assert np.all(np.any(after[~is_idle] != before[~is_idle], axis=-1))
    # Where a dense table would move them, if this optimizer can.
    row = jnp.ones((1, DIM))
    _, slots = case.dense.update(row, case.dense.init(row), row)
    updates, _ = case.dense.update(jnp.zeros_like(row), slots, row)
    assert bool(np.any(np.asarray(updates) != 0)) == case.moves_untouched


@functools.cache
def crowded(name):
    """Two entries and the frames of one vector; jitted once."""
    store = make_store(
        CASES[name].optimizer,
        num_entries=2,
        num_ways=2,
        num_frames=5,
        initial_chunks=4,
        headroom=0.0,
        hysteresis=0.0,
        ranking="chunks",
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, ids, grads):
        state, handle, info = store.admit(state, ids)
        state, _ = store.apply_gradients(state, handle, grads)
        return state, store.gather(state, handle)[0], info

    return store, step, jax.jit(store.prune_step, donate_argnums=0)


@pytest.mark.parametrize("by", ["prune_step", "eviction"])
@pytest.mark.parametrize("name", CASES)
def test_a_frame_that_changes_owner_is_as_fresh(name, by):
    store, step, prune = crowded(name)
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(9, 2, DIM)).astype(np.float32)
    grads[:4, 1] *= 100.0  # the second key outranks the first, and has no frame
    used, fresh = store.init(jax.random.key(3)), store.init(jax.random.key(3))
    for grad in grads[:4]:
        used, vector, _ = step(used, np.int32([1, 2]), grad)
        fresh, _, _ = step(fresh, np.int32([-1, -1]), grad)
    assert np.all(np.asarray(vector) != 0)
    newcomer = np.int32([2, -1])
    if by == "prune_step":
        used, info = prune(used)
        assert int(info.granted) == 4
    else:
        newcomer = np.int32([3, -1])
    for number, grad in enumerate(grads[4:]):
        used, vector, info = step(used, newcomer, grad)
        fresh, expected, _ = step(fresh, newcomer, grad)
        assert int(info.evicted) == (by == "eviction" and number == 0)
        assert np.all(np.asarray(expected) != 0)
        np.testing.assert_array_equal(vector, expected)


@pytest.mark.parametrize("name", CASES)
def test_slots_are_counted_in_the_budget(name):
    optimizer, slots = CASES[name].optimizer, CASES[name].slots
    budget, chunk_dim = 60_000, 8
    config = fj.EmbeddingConfig.from_budget(
        budget, embedding_dim=32, chunk_dim=chunk_dim, optimizer=optimizer
    )
    store = fj.EmbeddingStore(config, optimizer)
    report = store.memory_report(store.init(jax.random.key(0)))
    lines = -(-config.num_frames * chunk_dim // 128)
    lines_of_scalars = -(-config.num_frames // 128)
    expected = 128 * 4 * (slots[0] * lines + slots[1] * lines_of_scalars)
    assert report.slots == expected
    assert 0.95 * budget <= report.all_in_bytes <= budget
    assert fj.predict_memory(config, optimizer).slots == expected
    specs = optimizer.slot_specs(chunk_dim)
    assert sum(spec.num_bytes for spec in specs) == 4 * (slots[0] * 8 + slots[1])
    others = [other for other in CASES.values() if other.slots != slots]
    for other in others:
        with pytest.raises(ValueError, match="from_budget counted"):
            fj.EmbeddingStore(config, other.optimizer)
