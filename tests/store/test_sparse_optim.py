"""Sparse optimizers by themselves: their arguments, what is refused, their scales."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from helpers import make_store, tolerance

SCHEDULE = optax.exponential_decay(0.3, transition_steps=1, decay_rate=0.8)


def test_a_schedule_needs_the_step_of_the_store():
    optimizer = fj.sparse(optax.sgd, learning_rate=SCHEDULE)
    values = jnp.ones((2, 4))
    slots = optimizer.init(values)
    with pytest.raises(ValueError, match="learning_rate must be given"):
        optimizer.update(values, slots, values)
    with pytest.raises(ValueError, match="step must be given"):
        optimizer.learning_rate_at(None)
    assert fj.sparse(optax.sgd, learning_rate=0.1).learning_rate_at(None) is None
    for step in (0, 3, jnp.int32(3)):
        rate = optimizer.learning_rate_at(step)
        got, _ = optimizer.update(values, slots, values, learning_rate=rate)
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
        rate = {"learning_rate": plain.learning_rate_at(step)}
        full, full_slots = plain.update(grads, slots, values, **rate)
        expected = values + (full - values) * scale[:, None]
        values, slots = scaled.update(grads, slots, values, **rate, scale=scale)
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
