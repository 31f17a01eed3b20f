"""What the compiled step may and may not contain."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from helpers import make_store

BATCH = 256


def compiled_step(optimizer, num_frames, *, has_rows=False, **fields):
    """The sparse part of a step: admit, gather, update, with the state donated."""
    if has_rows:
        fields |= {"table_sizes": (num_frames // 2, 0, 0, 0), "filter_slots": 0}
    store = make_store(
        optimizer,
        embedding_dim=16,
        chunk_dim=4,
        num_entries=num_frames // 2,
        num_frames=num_frames,
        **({"filter_slots": num_frames} | fields),
        scorer=fj.scorers.saliency(),
    )

    def step(state, ids, grads):
        state, handle, admitted = store.admit(state, ids)
        vectors = store.gather(state, handle)
        state, applied = store.apply_gradients(state, handle, grads + vectors)
        return state, admitted, applied

    state = jax.eval_shape(store.init, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    grads = jax.ShapeDtypeStruct((BATCH, 16), jnp.float32)
    return jax.jit(step, donate_argnums=0).lower(state, ids, grads).compile()


@pytest.mark.parametrize(
    ("optimizer", "fields"),
    [
        (fj.sparse(optax.adagrad(0.1)), {}),
        (fj.rowwise_adagrad(0.1), {}),
        (fj.sparse(optax.adam(1.0)), {}),
        (fj.rowwise_adagrad(0.1), {"value_dtype": "bfloat16"}),
        (fj.rowwise_adagrad(0.1), {"table_dims": (4, 8, 16, 16), "initial_chunks": 3}),
        (fj.sparse(optax.adagrad(0.1)), {"has_rows": True}),
        (fj.sparse(optax.adagrad(0.1)), {"fallback": "coarse", "coarse_dim": 8}),
    ],
    ids=[
        "adagrad",
        "rowwise_adagrad",
        "adam",
        "bfloat16",
        "table_dims",
        "rows",
        "coarse",
    ],
)
def test_a_step_copies_nothing_of_the_size_of_the_state(optimizer, fields):
    num_frames = 1 << 18
    compiled = compiled_step(optimizer, num_frames, **fields)
    large = []
    for name, dims in re.findall(
        r"%([\w.\-]*copy[\w.\-]*) = \w+\[([\d,]+)\]", compiled.as_text()
    ):
        if np.prod([int(dim) for dim in dims.split(",")]) >= num_frames // 2:
            large.append((name, dims))
    assert not large
    smaller = compiled_step(optimizer, num_frames // 16, **fields)
    assert (
        compiled.memory_analysis().temp_size_in_bytes
        # A byte per entry tells which of them the batch uses.
        <= smaller.memory_analysis().temp_size_in_bytes + num_frames // 2 + 4096
    )


def test_transitions_are_traced_once():
    chex.clear_trace_counter()
    store = make_store()
    admit = jax.jit(chex.assert_max_traces(store.admit, n=1), donate_argnums=0)
    apply = jax.jit(
        chex.assert_max_traces(store.apply_gradients, n=1), donate_argnums=0
    )
    prune = jax.jit(chex.assert_max_traces(store.prune_step, n=1), donate_argnums=0)
    state = store.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    for _ in range(3):
        ids = rng.integers(0, 100, BATCH).astype(np.int32)
        state, handle, _ = admit(state, ids)
        state, _ = apply(state, handle, jnp.ones((BATCH, 8)))
        state, _ = prune(state)


def test_equal_stores_share_a_trace():
    optimizer = fj.sparse(optax.sgd(0.1))
    left, right = make_store(optimizer), make_store(optimizer)
    assert left == right
    assert hash(left) == hash(right)
