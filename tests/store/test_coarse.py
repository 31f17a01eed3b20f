import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from fiited_jax.chunk_pool import initial_values, read_frames
from fiited_jax.extent import frames_of_entries
from fiited_jax.keys import Keys
from fiited_jax.utility import rounding_salt
from helpers import assert_same_state, copy_state, jitted, make_store, tolerance

RATE, START = 0.5, 0.25
ADAGRAD = fj.sparse(optax.adagrad(RATE, initial_accumulator_value=START, eps=0.0))
COARSE = {
    "fallback": "coarse",
    "coarse_dim": 4,
    "coarse_step": 0.125,
    "initial_chunks": 0,
}
IDS = np.arange(40, dtype=np.int32)


def coarse_store(optimizer=ADAGRAD, **fields):
    return make_store(optimizer, **(COARSE | {"num_tables": 1} | fields))


def signed(codes):
    return (codes.astype(np.int32) & 15 ^ 8) - 8


def codes_of(store, state, ids):
    """What the entries of ids hold, `u8[n, Q]`."""
    entries = np.asarray(store.find(state, ids).entries)
    assert (entries >= 0).all()
    return np.asarray(state.pages.coarse).reshape(-1, store.config.coarse_dim)[entries]


def step(store, state, ids, grads):
    functions = jitted(store)
    state, handle, _ = functions.admit(state, ids)
    return functions.apply(state, handle, jnp.asarray(grads, jnp.float32))


def trained(store, num_steps=4, seed=0, ids=IDS):
    """A state whose ids have been stepped without frames."""
    rng = np.random.default_rng(seed)
    state = store.init(jax.random.key(seed))
    for _ in range(num_steps):
        state, _ = step(store, state, ids, rng.normal(size=(len(ids), 8)))
    return state


@pytest.mark.parametrize("rows", [None, (64,)], ids=["hashed", "rows"])
def test_every_step_is_adagrad_rounded_by_its_salt(rows):
    """A NumPy model, code by code; one of the ids comes three times."""
    store = coarse_store(table_sizes=rows)
    ids = np.array([5, 9, 5, 11, -1, 5], np.int32)
    keys = np.array([5, 9, 11])
    rng = np.random.default_rng(1)
    state = store.init(jax.random.key(0))
    steps, doublings = np.zeros((3, 4)), np.zeros((3, 4))
    for number in range(6):
        grads = rng.normal(size=(len(ids), 8)).astype(np.float32)
        state, _ = step(store, state, ids, grads)
        grad = np.stack([grads[ids == key].sum(axis=0) for key in keys])[:, :4]
        held = START * 2.0**doublings
        change = -RATE * grad / np.sqrt(held + grad**2) / COARSE["coarse_step"]
        entries = np.asarray(store.find(state, keys.astype(np.int32)).entries)
        places = jnp.asarray(entries[:, None] * 4 + np.arange(4), jnp.int32)
        salt = np.asarray(rounding_salt(jnp.int32(number), places, 4)).astype(np.int64)
        steps = np.clip(steps + np.floor(change + (salt >> 16) / 65536), -7, 7)
        growth = np.log2((held + grad**2) / held)
        doublings = np.minimum(
            doublings + np.floor(growth + (salt & 0xFFFF) / 65536), 15
        )
        codes = codes_of(store, state, keys.astype(np.int32))
        np.testing.assert_array_equal(signed(codes), steps)
        np.testing.assert_array_equal(codes >> 4, doublings)
        store.check_invariants(state)
    read = np.asarray(store.lookup(state, ids))
    expected = np.zeros((len(ids), 8), np.float32)
    for key, row in zip(keys, steps * COARSE["coarse_step"], strict=True):
        expected[ids == key, :4] = row
    np.testing.assert_array_equal(read, expected)
    assert np.ptp(doublings) > 0


def test_rounding_favours_no_side():
    store = coarse_store(num_entries=8192)
    ids, grad = np.arange(4000, dtype=np.int32), 0.1
    state, _ = step(store, store.init(jax.random.key(0)), ids, np.full((4000, 8), grad))
    change = -RATE * grad / np.sqrt(START + grad**2) / COARSE["coarse_step"]
    assert -1 < change < 0
    codes = codes_of(store, state, ids)
    near = 5 / np.sqrt(codes.size)  # of a spread below 1
    np.testing.assert_allclose(signed(codes).mean(), change, atol=near)
    growth = np.log2(1 + grad**2 / START)
    np.testing.assert_allclose((codes >> 4).mean(), growth, atol=near)
    both = np.corrcoef(signed(codes).ravel(), codes.ravel() >> 4)[0, 1]
    assert abs(both) < near  # the two are rounded independently


def test_a_gradient_of_zero_changes_nothing():
    store = coarse_store()
    state = trained(store)
    before = codes_of(store, state, IDS)
    assert len(np.unique(before)) > 20
    state, info = step(store, state, IDS, np.zeros((len(IDS), 8)))
    np.testing.assert_array_equal(codes_of(store, state, IDS), before)
    assert int(info.non_finite) == 0


def test_values_and_state_stop_at_their_ends():
    store = coarse_store(fj.sparse(optax.adagrad(9.0, START)))
    state = store.init(jax.random.key(0))
    for _ in range(20):
        state, _ = step(store, state, IDS[:2], np.full((2, 8), [[1e9], [-1e9]]))
    codes = codes_of(store, state, IDS[:2])
    np.testing.assert_array_equal(signed(codes), np.full((2, 4), [[-7], [7]]))
    np.testing.assert_array_equal(codes >> 4, np.full((2, 4), 15))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_left_alone(bad):
    store = coarse_store()
    state = trained(store)
    before = codes_of(store, state, IDS)
    grads = np.ones((len(IDS), 8))
    grads[3, 1] = bad
    state, info = step(store, state, IDS, grads)
    after = codes_of(store, state, IDS)
    np.testing.assert_array_equal(after[3, :2], before[3, :2])  # its chunk
    assert (after[3, 2:] != before[3, 2:]).any()
    assert int(info.non_finite) == 1
    assert np.isfinite(np.asarray(store.lookup(state, IDS))).all()


def test_what_a_step_would_spoil_is_left_alone():
    """State near the largest float32 overflows; that of a fresh chunk would not."""
    store = coarse_store(fj.sparse(optax.adagrad(RATE, 1e34)))
    state, grads = store.init(jax.random.key(0)), np.zeros((len(IDS), 8))
    grads[:, :2] = 1.2e19
    for _ in range(9):
        state, _ = step(store, state, IDS, grads)
    codes = codes_of(store, state, IDS)
    # One that is at its end keeps the other of its chunk where it is.
    np.testing.assert_array_equal((codes[:, :2] >> 4).max(axis=1), 15)
    grads[3, 2:] = 1.0
    state, info = step(store, state, IDS, grads)
    np.testing.assert_array_equal(codes_of(store, state, IDS), codes)
    assert int(info.non_finite) == len(IDS)


@pytest.mark.parametrize("value_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ranking", ["lengths", "chunks"])
@pytest.mark.parametrize("rows", [None, (64,)], ids=["hashed", "rows"])
def test_a_chunk_that_gets_a_frame_goes_on_from_there(value_dtype, ranking, rows):
    fields = {"value_dtype": value_dtype, "ranking": ranking, "table_sizes": rows}
    store = coarse_store(num_frames=61, headroom=0.0, **fields)
    state = trained(store)
    before, codes = store.lookup(state, IDS), codes_of(store, state, IDS)
    state, info = jitted(store).prune(state)
    assert int(info.granted) == 60
    store.check_invariants(state)
    handle = store.find(state, IDS)
    frames = np.asarray(frames_of_entries(state.pages, handle.entries, store.config))
    has_frame = frames > 0
    assert has_frame[:, :2].any()
    assert not has_frame[:, :2].all()
    after = np.asarray(store.lookup(state, IDS)).reshape(-1, 4, 2)
    coarse = np.asarray(before).reshape(-1, 4, 2)
    np.testing.assert_array_equal(after[:, :2], coarse[:, :2])
    slots = read_frames(state.pool, jnp.asarray(frames[:, :2]).reshape(-1), 2)[1]
    (held,) = jax.tree.leaves(slots)
    expected = START * 2.0 ** (codes >> 4).reshape(-1, 2)
    own = has_frame[:, :2].reshape(-1)
    np.testing.assert_array_equal(np.asarray(held)[own], expected[own])
    # What has a frame is stepped there, and only there.
    state, _ = step(store, state, IDS, np.ones((len(IDS), 8)))
    then = codes_of(store, state, IDS).reshape(-1, 2, 2)
    stays = (then == codes.reshape(-1, 2, 2)).all(axis=-1)
    assert stays[has_frame[:, :2]].all()
    assert not stays[~has_frame[:, :2]].any()


def test_a_chunk_without_coarse_values_starts_as_it_would():
    """Rounded to the nearest, as `admit` rounds."""
    store = coarse_store(value_dtype="bfloat16", headroom=0.0)
    ids = IDS[:20]
    state, _ = step(store, store.init(jax.random.key(0)), ids, np.ones((20, 8)))
    state, _ = jitted(store).prune(state)
    keys = Keys(jnp.repeat(jnp.uint32(ids), 2), jnp.zeros(40, jnp.uint32))
    chunks, tables = jnp.tile(jnp.array([2, 3]), 20), jnp.zeros(40, jnp.int32)
    scale = store.config.initial_scale
    drawn = initial_values(state.seed, keys, tables, chunks, 2, scale)
    nearest = np.asarray(drawn.astype(jnp.bfloat16).astype(jnp.float32))
    got = np.asarray(store.lookup(state, ids))[:, 4:]
    np.testing.assert_array_equal(got, nearest.reshape(20, 4))


def test_a_successor_reads_nothing_of_the_evicted_key():
    store = coarse_store(num_entries=32, num_frames=2)
    state = trained(store, ids=IDS[:32])
    assert np.asarray(state.pages.coarse).any()
    state, handle, info = jitted(store).admit(state, IDS[:32] + 100)
    assert int(info.evicted) == 32
    store.check_invariants(state)
    np.testing.assert_array_equal(np.asarray(store.gather(state, handle)), 0)


def test_nothing_is_read_without_an_entry_or_beyond_the_tables_dimension():
    store = coarse_store(num_tables=2, table_dims=(2, 8))
    tables = np.arange(40, dtype=np.int32) % 2
    functions = jitted(store)
    state, handle, _ = functions.admit(
        store.init(jax.random.key(0)), IDS, tables=tables
    )
    state, _ = functions.apply(state, handle, jnp.ones((40, 8)))
    read = np.asarray(store.lookup(state, IDS, tables=tables)).reshape(20, 2, 8)
    assert read[:, 0, :2].all()
    np.testing.assert_array_equal(read[:, 0, 2:], 0)
    assert read[:, 1, :4].all()
    np.testing.assert_array_equal(read[:, 1, 4:], 0)
    others = store.lookup(state, np.array([-1, 77], np.int32))
    np.testing.assert_array_equal(np.asarray(others), 0)


def test_the_same_seed_gives_the_same_bits():
    store = coarse_store()
    assert_same_state(trained(store), trained(store))
    assert (codes_of(store, trained(store), IDS) != 0).any()


def test_a_table_scale_holds_for_coarse_values():
    optimizer = fj.sparse(
        optax.adagrad(RATE, initial_accumulator_value=START), table_scale=(1.0, 0.0)
    )
    store = coarse_store(optimizer, num_tables=2)
    tables = np.arange(40, dtype=np.int32) % 2
    functions = jitted(store)
    state, handle, _ = functions.admit(
        store.init(jax.random.key(0)), IDS, tables=tables
    )
    state, _ = functions.apply(state, handle, jnp.ones((40, 8)))
    read = np.asarray(store.lookup(state, IDS, tables=tables)).reshape(20, 2, 8)
    assert read[:, 0, :4].all()
    np.testing.assert_array_equal(read[:, 1], 0)


@pytest.mark.parametrize(
    "optimizer",
    [
        fj.rowwise_adagrad(0.1),
        fj.sparse(optax.sgd(0.1)),
        fj.sparse(optax.sgd(0.1, momentum=0.9)),
        fj.sparse(optax.adam(0.1)),
        fj.sparse(optax.adagrad(0.1, initial_accumulator_value=0.0)),
    ],
    ids=["rowwise", "sgd", "momentum", "adam", "from_zero"],
)
def test_optimizers_whose_state_is_not_a_positive_number_are_refused(optimizer):
    with pytest.raises(ValueError, match="optimizer must keep one positive number"):
        coarse_store(optimizer)


@pytest.mark.parametrize(
    "optimizer",
    [
        fj.sparse(optax.adagrad, learning_rate=optax.linear_schedule(0.0, 0.1, 9)),
        fj.sparse(optax.rmsprop(0.1, initial_scale=0.5)),
    ],
    ids=["schedule", "rmsprop"],
)
def test_others_are_not(optimizer):
    state = trained(coarse_store(optimizer), num_steps=12)
    assert np.asarray(state.pages.coarse).any()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"coarse_dim": 0}, "coarse_dim must be at least 1, got 0"),
        ({"coarse_dim": 3}, "coarse_dim must be a multiple of chunk_dim=2 up to"),
        ({"coarse_dim": 10}, "up to embedding_dim=8, got 10"),
        ({"fallback": "zero"}, "coarse_dim must be 0 with fallback='zero', got 4"),
        ({"coarse_step": 0.0}, "coarse_step must be"),
        ({"num_shared": 3}, "num_shared must be 0 with fallback='coarse', got 3"),
    ],
)
def test_bad_sizes_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        coarse_store(**fields)


@pytest.mark.parametrize("rows", [None, (3000,)], ids=["hashed", "rows"])
def test_a_budget_holds_coarse_values(rows):
    sizes = {} if rows is None else {"table_sizes": rows}
    config = fj.EmbeddingConfig.from_budget(
        "64KiB", embedding_dim=16, chunk_dim=1, optimizer=ADAGRAD, fallback="coarse",
        coarse_dim=5, **sizes,
    )  # fmt: skip
    assert config.initial_chunks == 0
    report = fj.predict_memory(config, ADAGRAD, num_ids=3000)
    assert 0.97 * (64 << 10) < report.all_in_bytes <= 64 << 10
    assert report.coarse == 5 * config.num_entries
    assert report.kept_values == report.values + report.coarse // 2
    store = fj.EmbeddingStore(config, ADAGRAD)
    held = store.memory_report(store.init(jax.random.key(0)), num_ids=3000)
    assert held.components == report.components
    assert config.entry_bytes * config.num_entries == (
        held.keys + held.runs + held.utilities + held.coarse
    )


def test_dense_tables_become_the_nearest_coarse_values():
    table = np.random.default_rng(0).normal(size=(30, 8), scale=0.3).astype(np.float32)
    config = coarse_store(num_frames=9, headroom=0.0).config
    store, state, info = fj.from_dense([table], config, ADAGRAD, key=jax.random.key(0))
    assert info.kept_chunks == 8
    store.check_invariants(state)
    ids = np.arange(30, dtype=np.int32)
    codes = codes_of(store, state, ids)
    steps = np.clip(np.round(table[:, :4] / COARSE["coarse_step"]), -7, 7)
    assert np.abs(steps).max() == 7
    np.testing.assert_array_equal(signed(codes), steps)
    np.testing.assert_array_equal(codes >> 4, 0)
    lengths = np.asarray(state.pages.extent)[np.asarray(store.find(state, ids).entries)]
    read = np.asarray(store.lookup(state, ids))
    bare = lengths == 0
    np.testing.assert_array_equal(read[bare, :4], steps[bare] * COARSE["coarse_step"])
    np.testing.assert_array_equal(read[lengths > 0, :2], table[lengths > 0, :2])


def test_coarse_values_of_a_free_entry_are_told():
    store = coarse_store()
    state = trained(store)
    free = int(np.argmax(np.asarray(state.pages.owner) == 0))
    broken = copy_state(state)
    coarse = broken.pages.coarse.at[free * 4].set(3)
    object.__setattr__(broken.pages, "coarse", coarse)
    with pytest.raises(ValueError, match=f"no coarse values, entry {free}"):
        store.check_invariants(broken)


def test_they_learn_what_a_dense_table_learns():
    """Targets within their range are reached to about a step."""
    store = coarse_store(
        fj.sparse(optax.adagrad(0.3, initial_accumulator_value=0.01)),
        num_frames=2, coarse_dim=8, headroom=0.0,
    )  # fmt: skip
    target = np.random.default_rng(0).uniform(-0.8, 0.8, (40, 8)).astype(np.float32)
    state, errors = store.init(jax.random.key(0)), []
    for _ in range(60):
        vectors = np.asarray(jitted(store).lookup(state, IDS))
        errors.append(np.abs(vectors - target).mean())
        state, _ = step(store, state, IDS, vectors - target)
    assert errors[0] > 0.3
    assert np.mean(errors[-10:]) < COARSE["coarse_step"]
    np.testing.assert_allclose(errors[0], np.abs(target).mean(), **tolerance(1))
