import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fiited_jax as fj
from fiited_jax.utility import (
    MAX_UTILITY,
    Bounds,
    accumulate,
    decay_factor,
    decode,
    encode,
    growth_factor,
    rounding_salt,
    select_top,
)
from helpers import make_store


def test_decay_halves_per_half_life_and_growth_undoes_it():
    steps = jnp.array([0, 5, 10, 5000])
    got = decay_factor(steps, 5.0)
    np.testing.assert_allclose(got, [1, 0.5, 0.25, 2.0**-64], rtol=1e-6)
    np.testing.assert_allclose(growth_factor(steps, 5.0) * got, 1.0, rtol=1e-6)


def test_scores_that_are_no_gain_count_as_zero():
    score = jnp.array([jnp.nan, -1.0, jnp.inf, 2.0])
    got = accumulate(jnp.ones(4), score, jnp.float32(2.0))
    np.testing.assert_array_equal(got, np.float32([1, 1, 1, 5]))
    huge, growth = jnp.float32(9e29), jnp.float32(2.0**64)
    assert accumulate(huge, huge, jnp.float32(1.0)) == np.float32(MAX_UTILITY)
    assert accumulate(huge, huge, growth) == np.float32(MAX_UTILITY)


def test_codes_are_near_ordered_and_exact_for_zero():
    utility = jnp.asarray(np.geomspace(1e-30, MAX_UTILITY, 4000), jnp.float32)
    for salt in (0, 0xFFFFFFFF, 0x12345678):
        codes = encode(utility, jnp.full(utility.shape, salt, jnp.uint32))
        assert np.all(np.diff(np.asarray(codes).astype(int)) >= 0)
        np.testing.assert_allclose(decode(codes), utility, rtol=2.0**-8)
        again = encode(
            decode(codes), jnp.full(utility.shape, ~salt & 0xFFFFFFFF, jnp.uint32)
        )
        np.testing.assert_array_equal(again, codes)
    assert int(encode(jnp.float32(0.0), jnp.uint32(0xFFFFFFFF))) == 0


def test_many_small_scores_add_up():
    index = jnp.arange(4096)

    def add(step, codes):
        utility = decode(codes) + 1.0
        return encode(utility, rounding_salt(step, index))

    codes = jax.lax.fori_loop(0, 4000, add, jnp.zeros(4096, jnp.uint16))
    # Rounded to nearest, they would stop at 512.
    np.testing.assert_allclose(np.mean(decode(codes)), 4000, rtol=2e-3)
    assert np.std(np.asarray(decode(codes))) < 200


def test_scores_of_many_steps_add_up_in_a_store():
    store = make_store(num_entries=256, scorer=fj.scorers.frequency(), half_life=1e30)
    ids = np.arange(200, dtype=np.int32)
    state, handle, _ = store.admit(store.init(jax.random.key(0)), ids)

    def apply(_, state):
        return store.apply_gradients(state, handle, jnp.ones((200, 8)))[0]

    state = jax.jit(lambda state: jax.lax.fori_loop(0, 2000, apply, state))(state)
    utility = np.asarray(decode(state.pages.utility))[np.asarray(handle.entries)]
    np.testing.assert_allclose(utility.mean(), 2000, rtol=0.01)
    assert utility.std() > 1  # every entry has a rounding of its own


def expected_top(utility, owned, weights, target, bounds=None):
    """The chosen candidates per element, by a sorted list."""
    candidates = []
    for i, worth in enumerate(utility):
        own = range(len(weights)) if bounds is None else range(*(b[i] for b in bounds))
        for chunk, weight in enumerate(np.float32(weights)):
            if chunk in own and (worth > 0 or chunk < owned[i]):
                candidates.append((-(worth * weight), i, chunk))
    candidates.sort()
    counts = np.zeros(len(utility), int)
    for _, i, _ in candidates[:target]:
        counts[i] += 1
    is_full = len(candidates) >= target > 0
    reached = -candidates[:target][-1][0] if is_full else 0.0
    return counts, reached


def exact_codes(utility):
    """Utilities that their codes hold exactly, and the codes."""
    codes = encode(jnp.asarray(utility, jnp.float32), jnp.zeros(len(utility), "uint32"))
    return np.asarray(decode(codes)), codes


select = jax.jit(select_top, static_argnums=(2, 3))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    utility=st.lists(
        st.one_of(
            st.sampled_from([0.0, 1.0, 2.0, 1e30]),
            st.floats(0, 2.0**99, width=32, allow_subnormal=False),
        ),
        min_size=8,
        max_size=8,
    ),
    owned=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    target=st.integers(1, 17),
)
def test_select_top_is_an_exact_ranking(utility, owned, target):
    utility, codes = exact_codes(utility)
    weights = (1.0, 0.3)
    got, threshold = select(codes, jnp.asarray(owned), weights, target)
    counts, reached = expected_top(utility, owned, weights, target)
    np.testing.assert_array_equal(got, counts)
    assert float(threshold) == reached


@pytest.mark.parametrize("num_chunks", [1, 3])
@pytest.mark.parametrize("size", [1, 1000, (1 << 12) + 1])
def test_select_top_weighs_chunks_and_cuts_ties_at_any_place(size, num_chunks):
    rng = np.random.default_rng(size)
    utility, codes = exact_codes(rng.integers(0, 4, size))
    weights = (1.0, 0.5, 0.25)[:num_chunks]
    owned = rng.integers(0, num_chunks + 1, size).astype(np.int32)
    for target in (1, size * num_chunks // 3 + 1, size * num_chunks):
        got, threshold = select(codes, jnp.asarray(owned), weights, target)
        counts, reached = expected_top(utility, owned, weights, target)
        np.testing.assert_array_equal(got, counts)
        assert float(threshold) == reached


@pytest.mark.parametrize("size", [1, 500])
def test_select_top_keeps_within_bounds(size):
    rng = np.random.default_rng(size)
    for _ in range(20):
        utility, codes = exact_codes(rng.integers(0, 4, size))
        weights = (1.0, 0.5, 0.25)
        owned, first, limit = rng.integers(0, 4, (3, size)).astype(np.int32)
        first = np.minimum(first, limit)
        bounds = Bounds(jnp.asarray(first), jnp.asarray(limit))
        for target in (0, 1, size, 3 * size):
            got, threshold = select(codes, jnp.asarray(owned), weights, target, bounds)
            counts, reached = expected_top(
                utility, owned, weights, target, (first, limit)
            )
            np.testing.assert_array_equal(got, counts)
            assert float(threshold) == (reached if target else np.inf)


def test_subnormal_utilities_are_none():
    tiny = jnp.float32([2e-39, 1e-45, 2.0**-126])
    codes = encode(tiny, jnp.full(3, 0xFFFFFFFF, jnp.uint32))
    np.testing.assert_array_equal(np.asarray(codes) > 0, [False, False, True])
    got, _ = select(codes, jnp.zeros(3, jnp.int32), (1.0, 0.5, 0.1), 2)
    assert int(got.sum()) == 2


def test_roundings_of_one_step_differ_by_purpose():
    index = jnp.arange(64)
    first = rounding_salt(jnp.int32(5), index)
    assert np.mean(first == rounding_salt(jnp.int32(5), index, purpose=1)) < 0.1
