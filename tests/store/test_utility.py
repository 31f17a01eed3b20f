import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiited_jax.utility import MAX_UTILITY, accumulate, decay, select_top


def test_decay_halves_per_half_life():
    got = decay(jnp.full(4, 8.0), jnp.array([0, 5, 10, -3]), 5.0)
    np.testing.assert_allclose(got, [8, 4, 2, 8], rtol=1e-6)


def test_scores_that_are_no_gain_count_as_zero():
    score = jnp.array([jnp.nan, -1.0, jnp.inf, 2.0])
    got = accumulate(jnp.ones(4), score)
    np.testing.assert_array_equal(got, np.float32([1, 1, 1, 3]))
    assert accumulate(jnp.float32(9e29), jnp.float32(9e29)) == np.float32(MAX_UTILITY)


def expected_top(utility, candidate, target):
    order = sorted(np.flatnonzero(candidate), key=lambda i: (-utility[i], i))
    chosen = np.zeros(len(utility), bool)
    chosen[order[:target]] = True
    return chosen


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    utility=st.lists(
        st.one_of(
            st.sampled_from([0.0, 1.0, 2.0, 1e-45, 1e30]),
            st.floats(0, 2.0**99, width=32, allow_subnormal=False),
        ),
        min_size=8,
        max_size=8,
    ),
    candidate=st.lists(st.booleans(), min_size=8, max_size=8),
    target=st.integers(1, 9),
)
def test_select_top_is_an_exact_ranking(utility, candidate, target):
    utility, candidate = np.float32(utility), np.array(candidate)
    got, _ = jax.jit(select_top, static_argnums=2)(
        jnp.asarray(utility), jnp.asarray(candidate), target
    )
    np.testing.assert_array_equal(got, expected_top(utility, candidate, target))


@pytest.mark.parametrize("size", [1, 1000, 1 << 12, (1 << 12) + 1])
def test_select_top_cuts_ties_at_any_place(size):
    rng = np.random.default_rng(size)
    utility = rng.integers(0, 4, size).astype(np.float32)
    candidate = rng.random(size) < 0.7
    for target in (1, size // 3 + 1, size):
        got, threshold = select_top(
            jnp.asarray(utility), jnp.asarray(candidate), target
        )
        expected = expected_top(utility, candidate, target)
        np.testing.assert_array_equal(got, expected)
        if expected.any():
            assert float(threshold) <= utility[expected].min()
