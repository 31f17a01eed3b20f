import jax.numpy as jnp
import numpy as np
import pytest

import fiited_jax as fj

VECTORS = np.float32([[[1, 2], [3, 4], [50, 60]], [[7, 8], [9, 9], [9, 9]]])
MASK = np.array([[True, True, False], [False, False, False]])


@pytest.mark.parametrize(
    ("combiner", "weights", "expected"),
    [
        ("sum", None, [[4, 6], [0, 0]]),
        ("mean", None, [[2, 3], [0, 0]]),
        ("sum", [[2, 1, 9], [1, 1, 1]], [[5, 8], [0, 0]]),
        ("mean", [[3, 1, 9], [1, 1, 1]], [[1.5, 2.5], [0, 0]]),
    ],
)
def test_bags_by_hand(combiner, weights, expected):
    weights = None if weights is None else jnp.float32(jnp.array(weights))
    got = fj.pool(
        jnp.asarray(VECTORS), jnp.asarray(MASK), combiner=combiner, weights=weights
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_bad_arguments_are_named():
    vectors, mask = jnp.asarray(VECTORS), jnp.asarray(MASK)
    with pytest.raises(ValueError, match="'max'"):
        fj.pool(vectors, mask, combiner="max")  # pyright: ignore
    with pytest.raises(ValueError, match="mask must have shape"):
        fj.pool(vectors, mask[:1])
    with pytest.raises(ValueError, match="weights must have shape"):
        fj.pool(vectors, mask, weights=jnp.ones(2))
