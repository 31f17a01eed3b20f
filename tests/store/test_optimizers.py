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
    expected = slots[0] * lines * 128 * 4 + slots[1] * config.num_frames * 4
    assert report.slots == expected
    assert 0.95 * budget <= report.all_in_bytes <= budget
    assert fj.predict_memory(config, optimizer).slots == expected
    specs = optimizer.slot_specs(chunk_dim)
    assert sum(spec.num_bytes for spec in specs) == 4 * (slots[0] * 8 + slots[1])
    others = [other for other in CASES.values() if other.slots != slots]
    for other in others:
        with pytest.raises(ValueError, match="from_budget counted"):
            fj.EmbeddingStore(config, other.optimizer)


def test_a_schedule_needs_the_step_of_the_store():
    optimizer = fj.sparse(optax.sgd, learning_rate=SCHEDULE)
    values = jnp.ones((2, 4))
    slots = optimizer.init(values)
    with pytest.raises(ValueError, match="step must be given"):
        optimizer.update(values, slots, values)
    for step in (0, 3, jnp.int32(3)):
        got, _ = optimizer.update(values, slots, values, step=step)
        np.testing.assert_array_equal(got, 1 - np.asarray(SCHEDULE(step)))
    per_value = fj.sparse(optax.sgd, learning_rate=lambda step: jnp.ones(4))
    with pytest.raises(ValueError, match=r"a scalar, got the shape \(4,\)"):
        per_value.slot_specs(4)


@pytest.mark.parametrize(
    "factory",
    [
        optax.inject_hyperparams(optax.sgd),  # keeps the rate in its state
        lambda learning_rate: optax.sgd(0.1),
    ],
    ids=["kept", "ignored"],
)
def test_a_schedule_that_would_not_be_followed_is_refused(factory):
    fj.sparse(factory, learning_rate=0.1).slot_specs(4)
    with pytest.raises(ValueError, match="must reach the updates"):
        fj.sparse(factory, learning_rate=SCHEDULE).slot_specs(4)


def test_optimizers_of_equal_arguments_are_equal():
    makers = [
        lambda: fj.sparse(optax.adam, learning_rate=0.1, b1=0.8, eps=1e-6),
        lambda: fj.sparse(optax.adam, learning_rate=SCHEDULE),
        lambda: fj.sparse(optax.sgd, learning_rate=0.1, table_scale=[1.0, 0.0]),
        lambda: fj.rowwise_adagrad(0.1),
        lambda: fj.rowwise_adagrad(0.1, eps=1e-6),
    ]
    assert len({make() for make in makers}) == len(makers)
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def step(optimizer, values):
        traces.append(optimizer)
        return optimizer.init(values)

    for make in makers:
        assert make() == make()
        assert hash(make()) == hash(make())
        step(make(), jnp.ones((2, 4)))
        step(make(), jnp.ones((2, 4)))
    assert len(traces) == len(makers)
    swapped = fj.sparse(optax.adam, eps=1e-6, b1=0.8, learning_rate=0.1)
    assert swapped == makers[0]()


COUPLED = {
    "lamb": lambda: optax.lamb(0.1),
    "lars": lambda: optax.lars(0.1),
    "global_norm": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adagrad(0.1)
    ),
    "loose_global_norm": lambda: optax.chain(
        optax.clip_by_global_norm(1e4), optax.sgd(1e-6)
    ),
    "block_rms": lambda: optax.clip_by_block_rms(1.0),
    "adaptive_clip": lambda: optax.adaptive_grad_clip(0.01),
    "adafactor": lambda: optax.adafactor(0.1),
    "novograd": lambda: optax.novograd(0.1),
    "prodigy": lambda: optax.contrib.prodigy(),
    "accumulated": lambda: optax.MultiSteps(
        optax.fromage(0.1), 2
    ).gradient_transformation(),
    "noise": lambda: optax.add_noise(0.1, 0.5, 0),
    "noise_of_words": lambda: optax.GradientTransformation(
        lambda p: jax.random.PRNGKey(0),  # two words: a frame of two has that shape
        lambda g, s, p: (g + jax.random.normal(s, g.shape), jax.random.split(s)[0]),
    ),
    "a_key": lambda: optax.GradientTransformation(
        lambda p: jax.random.key(0), lambda g, s, p: (g, s)
    ),
    "by_place": lambda: optax.stateless(lambda g, p: g * jnp.float32([1.0, 2.0])),
    "needs_the_loss": lambda: optax.polyak_sgd(),
    "other_dtype": lambda: optax.GradientTransformation(
        lambda p: jnp.zeros_like(p, jnp.bfloat16), lambda g, s, p: (g, s + g)
    ),
}


@pytest.mark.parametrize("chunk_dim", [1, 2])
@pytest.mark.parametrize("name", COUPLED)
def test_what_is_not_elementwise_is_refused(name, chunk_dim):
    optimizer = fj.sparse(COUPLED[name]())
    config = make_store(chunk_dim=chunk_dim).config
    with pytest.raises(ValueError, match=r"elementwise|dtypes of its state"):
        fj.EmbeddingStore(config, optimizer)
    with pytest.raises(ValueError, match=r"elementwise|dtypes of its state"):
        fj.EmbeddingConfig.from_budget(
            "1MiB", embedding_dim=8, chunk_dim=chunk_dim, optimizer=optimizer
        )


def test_the_check_runs_in_any_mode_and_once():
    calls = []

    def update(grads, state, params=None):
        calls.append(grads)
        return grads * jnp.float32(1e38), state  # overflows

    tx = optax.GradientTransformation(optax.init_empty_state, update)
    optimizer = fj.sparse(tx)
    with jax.debug_nans(True), jax.debug_infs(True):
        jax.jit(lambda x: x * len(optimizer.slot_specs(4)))(1.0)
    num_calls = len(calls)
    assert num_calls > 0
    optimizer.slot_specs(8)
    assert len(calls) == num_calls


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((3,), TypeError, "or a factory of one, got int"),
        ((optax.adam,), TypeError, "learning_rate must be given with a factory"),
        ((lambda learning_rate: 3, 0.1), TypeError, "factory must return .* got int"),
        ((optax.sgd(0.1), 0.1), TypeError, "learning_rate must go with a factory"),
        ((optax.adam, "fast"), TypeError, "learning_rate must be a number"),
        ((optax.adam, float("inf")), ValueError, "learning_rate must be finite"),
        ((optax.adam, -0.1), ValueError, "at least 0, got -0.1"),
    ],
)
def test_other_arguments_of_sparse_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        fj.sparse(
            arguments[0], learning_rate=arguments[1] if len(arguments) > 1 else None
        )


def test_other_arguments_of_a_factory_are_refused():
    with pytest.raises(TypeError, match="b1 must be hashable"):
        fj.sparse(optax.adam, learning_rate=0.1, b1=jnp.float32(0.9))
    with pytest.raises(TypeError, match="b1 must go with a factory"):
        fj.sparse(optax.sgd(0.1), b1=0.9)
    with pytest.raises(TypeError, match="momenta"):
        fj.sparse(optax.sgd, learning_rate=0.1, momenta=0.9)


def test_rowwise_adagrad_survives_a_zero_gradient_without_eps():
    optimizer = fj.rowwise_adagrad(0.1, eps=0.0)
    values = jnp.ones((2, 4))
    got, slots = optimizer.update(
        jnp.zeros_like(values), optimizer.init(values), values
    )
    np.testing.assert_array_equal(got, values)
    np.testing.assert_array_equal(jax.tree.leaves(slots)[0], [0, 0])
    with pytest.raises(TypeError, match="learning_rate must be a number"):
        fj.rowwise_adagrad(None)  # pyright: ignore
    with pytest.raises(ValueError, match="finite"):
        fj.rowwise_adagrad(float("inf"))
    for name in ("eps", "initial_accumulator"):
        with pytest.raises(ValueError, match=f"{name} must be finite and at least 0"):
            fj.rowwise_adagrad(0.1, **{name: -1.0})


SCALES = (1.0, 0.25, 0.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda **scale: fj.sparse(optax.adamw(0.1, weight_decay=0.1), **scale),
        lambda **scale: fj.sparse(optax.lion, learning_rate=SCHEDULE, **scale),
        lambda **scale: fj.rowwise_adagrad(0.1, **scale),
    ],
    ids=["adamw", "scheduled_lion", "rowwise_adagrad"],
)
def test_table_scale_multiplies_the_updates_of_a_table(make):
    scaled, plain = make(table_scale=SCALES), make()
    assert scaled.slot_specs(4) == plain.slot_specs(4)
    tables = jnp.array([0, 1, 2, 1, 2, 0])
    scale = scaled.scale_of(tables)
    np.testing.assert_array_equal(scale, np.float32(SCALES)[np.asarray(tables)])
    assert plain.scale_of(tables) is None
    rng = np.random.default_rng(0)
    values = start = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    slots = scaled.init(values)
    for step in range(4):
        grads = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
        full, full_slots = plain.update(grads, slots, values, step=step)
        expected = values + (full - values) * scale[:, None]
        values, slots = scaled.update(grads, slots, values, step=step, scale=scale)
        np.testing.assert_allclose(values, expected, **tolerance(2))
        for leaf, full_leaf in zip(
            jax.tree.leaves(slots), jax.tree.leaves(full_slots), strict=True
        ):
            np.testing.assert_allclose(leaf, full_leaf, **tolerance(1))
    is_frozen = np.asarray(tables) == 2
    np.testing.assert_array_equal(values[is_frozen], start[is_frozen])
    assert np.all(np.asarray(values != start)[~is_frozen])


def test_a_table_scale_is_checked():
    optimizer = fj.sparse(optax.sgd(0.1), table_scale=SCALES)
    values = jnp.ones((2, 4))
    with pytest.raises(ValueError, match="scale must be given"):
        optimizer.update(values, optimizer.init(values), values)
    optimizer.check_num_tables(3)
    fj.sparse(optax.sgd(0.1)).check_num_tables(5)
    with pytest.raises(ValueError, match="each of 4 tables, got 3"):
        optimizer.check_num_tables(4)
    for wrong, error in (
        ((1.0, -1.0), ValueError),
        ((1.0, float("nan")), ValueError),
        ((1.0, "a"), TypeError),
        ((), TypeError),
        (1.0, TypeError),
        ("11", TypeError),
    ):
        with pytest.raises(error, match="table_scale"):
            fj.sparse(optax.sgd(0.1), table_scale=wrong)
