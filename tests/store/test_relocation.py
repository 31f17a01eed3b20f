"""Prune steps move frames in many small blocks, values and slots together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from fiited_jax import relocation
from helpers import make_store

ADAM = fj.sparse(optax.adam(0.1))


def chunks_of(store, state):
    """What every chunk that has a frame holds: `{(key, chunk): arrays}`."""
    config, held = store.config, {}
    pages = jax.tree.map(np.asarray, state.pages)
    width = config.chunk_dim
    values = np.asarray(state.pool.values).reshape(-1)
    slots = [np.asarray(leaf) for leaf in jax.tree.leaves(state.pool.slots)]
    for entry in np.flatnonzero(pages.owner):
        extent, frame = int(pages.extent[entry]), int(pages.start[entry])
        mask = extent if config.ranking == "chunks" else (1 << extent) - 1
        key = int(pages.key_low[entry]), int(pages.owner[entry])
        for chunk in range(config.num_chunks):
            if mask >> chunk & 1:
                part = slice(frame * width, (frame + 1) * width)
                held[key, chunk] = [values[part].copy()] + [
                    (leaf[frame] if leaf.ndim == 1 else leaf.reshape(-1)[part]).copy()
                    for leaf in slots
                ]
                frame += 1
    return held


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ranking": "chunks"},
        {"initial_chunks": 3, "headroom": 0.3},
        {"fallback": "shared", "num_shared": 3},
        {"num_frames": 9},
        {"value_dtype": "bfloat16"},
    ],
    ids=["lengths", "chunks", "headroom", "shared", "few_frames", "bfloat16"],
)
def test_what_is_kept_moves_whole_and_the_rest_is_fresh(fields, monkeypatch):
    monkeypatch.setattr(relocation, "_BLOCK_VALUES", 7)
    store = make_store(ADAM, num_ways=8, hysteresis=0.0, **fields)
    admit = jax.jit(store.admit, donate_argnums=0)
    apply = jax.jit(store.apply_gradients, donate_argnums=0)
    prune = jax.jit(store.prune_step, donate_argnums=0)
    state, rng = store.init(jax.random.key(0)), np.random.default_rng(0)
    num_kept = num_fresh = 0
    for _ in range(40):
        ids = np.minimum(rng.zipf(1.3, 32), 300).astype(np.int32)
        state, handle, _ = admit(state, ids, tables=ids % 4)
        grads = rng.normal(size=(32, 8)) * rng.choice([0.1, 1.0, 5.0])
        state, _ = apply(state, handle, jnp.asarray(grads, jnp.float32))
        if rng.random() < 0.5:
            before = chunks_of(store, state)
            state, info = prune(state)
            store.check_invariants(state)
            after = chunks_of(store, state)
            for chunk in before.keys() & after.keys():
                for old, new in zip(before[chunk], after[chunk], strict=True):
                    np.testing.assert_array_equal(old, new)
            fresh = after.keys() - before.keys()
            assert len(fresh) == int(info.granted)
            assert len(before.keys() - after.keys()) == int(info.freed)
            for chunk in fresh:  # Adam begins with zeros
                assert not any(np.any(slot) for slot in after[chunk][1:])
                assert np.all(after[chunk][0] != 0)
            num_kept += len(before.keys() & after.keys())
            num_fresh += len(fresh)
    assert num_kept > 20
    assert num_fresh > 5
