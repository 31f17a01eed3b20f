"""States, handles and gradients that the store refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from helpers import make_store


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "words"),
    [
        ((3, 4), "float32", ValueError, r"\(3, 8\); got \(3, 4\)"),
        ((8,), "float32", ValueError, r"\(3, 8\)"),
        ((3, 8), "int32", TypeError, "int32"),
    ],
)
def test_gradients_of_another_shape_or_type_are_refused(shape, dtype, error, words):
    store = make_store()
    state, handle, _ = store.admit(
        store.init(jax.random.key(0)), np.arange(3, dtype=np.int32)
    )
    with pytest.raises(error, match=words):
        store.apply_gradients(state, handle, jnp.zeros(shape, dtype))


def test_a_state_of_another_store_is_refused():
    store = make_store()
    for fields, words in (
        ({"num_entries": 128}, r"pages.key_low uint32\(64,\); got uint32\(128,\)"),
        ({"chunk_dim": 4}, "values"),
        ({"num_frames": 50}, "values"),
        ({"id_bits": 32}, "the words of its ids"),
        ({"num_ways": 8}, "num_ways are others"),
        ({"ranking": "chunks"}, r"utility uint16\(64,\); got uint16\(256,\)"),
        ({"num_tables": 300}, "owner uint8"),
        ({"optimizer": fj.sparse(optax.adam(0.1))}, "optimizer state"),
    ):
        other = make_store(**fields).init(jax.random.key(0))
        with pytest.raises(ValueError, match=words):
            store.lookup(other, np.array([1], np.int32))
    with pytest.raises(TypeError, match="dict"):
        store.prune_step({})
    state, handle, _ = store.admit(
        store.init(jax.random.key(0)), np.arange(1, dtype=np.int32)
    )
    with pytest.raises(TypeError, match="vector_grads must be an array"):
        store.apply_gradients(state, handle, [[0.0] * 8])
    with pytest.raises(TypeError, match="handle must be a Handle"):
        store.gather(state, None)
