"""Utilities over the 95th percentile of their table."""

import jax
import jax.numpy as jnp
import numpy as np

from fiited_jax.utility import MAX_UTILITY, PINNED, decode, encode
from fiited_jax.utility_scale import scale_by_p95

scale = jax.jit(scale_by_p95, static_argnums=2)
SIZES = (1, 19, 20, 21, 0, 300)  # counted utilities of each table


def code(utility):
    return encode(jnp.asarray(utility, jnp.float32), jnp.uint32(0))


def test_the_unit_is_the_exact_95th_percentile_of_the_table():
    rng = np.random.default_rng(0)
    for spread in (0, 3, 10):  # all tie, and over many exponents
        tables = rng.permutation(
            np.repeat([*range(6), *range(-1, 6)], [*SIZES, *[4] * 7])
        )
        utility = np.exp(spread * rng.normal(size=tables.size)).astype(np.float32)
        for table, size in enumerate(SIZES):
            others = np.flatnonzero(tables == table)[size:]
            utility[others] = [0, PINNED, 0, PINNED]
        codes = code(utility)
        utility = np.asarray(decode(codes))
        got = np.asarray(decode(scale(codes, jnp.asarray(tables), len(SIZES))))
        for table, size in enumerate(SIZES):
            own = utility[tables == table][:size]
            others = utility[tables == table][size:]
            np.testing.assert_array_equal(got[tables == table][size:], others)
            if size:
                # 1 of 1, 19 of 19, 19 of 20, 20 of 21, 285 of 300
                unit = np.sort(own)[{1: 1, 19: 19, 20: 19, 21: 20, 300: 285}[size] - 1]
                expected = decode(code(own / unit))
                np.testing.assert_array_equal(got[tables == table][:size], expected)
        np.testing.assert_array_equal(got[tables == -1], utility[tables == -1])


def test_no_utility_becomes_none_or_pinned():
    codes = code([1e-37, MAX_UTILITY, 1e-37, 0.0, PINNED] + [MAX_UTILITY] * 19)
    tables = jnp.array([0] * 2 + [1] * 22)
    got = decode(scale(codes, tables.at[1].set(1), 2))
    assert np.all(np.isfinite(got) == np.isfinite(decode(codes)))
    np.testing.assert_array_equal(got > 0, codes > 0)
    few_large = scale(code([1e-37] * 20 + [1e30]), jnp.zeros(21, jnp.int32), 1)
    assert np.isfinite(decode(few_large)[-1])
