"""The nnx module is the bare store, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fiited_jax as fj
from helpers import assert_same_state, jitted, make_store


def batches():
    rng = np.random.default_rng(0)
    for _ in range(6):
        ids = rng.integers(0, 40, 32).astype(np.int32)
        yield ids, jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)


def test_nnx_equals_the_bare_store():
    store = make_store(fj.sparse(optax.adagrad(0.5)), scorer=fj.scorers.saliency())
    embed = fj.nnx.PagedEmbed(store.config, store.optimizer, rngs=nnx.Rngs(0))
    state = jax.tree.map(jnp.copy, embed.state.get_value())
    run = jitted(store)
    admit = nnx.jit(lambda embed, ids: embed.admit(ids), donate_argnums=0)
    apply = nnx.jit(
        lambda embed, handle, grads: embed.apply_gradients(handle, grads),
        donate_argnums=0,
    )
    prune = nnx.jit(lambda embed: embed.prune_step(), donate_argnums=0)
    for ids, grads in batches():
        handle, _ = admit(embed, ids)
        state, same, _ = run.admit(state, ids)
        np.testing.assert_array_equal(embed.gather(handle), store.gather(state, same))
        apply(embed, handle, grads)
        state, _ = run.apply(state, same, grads)
        prune(embed)
        state, _ = run.prune(state)
    assert_same_state(embed.state.get_value(), state)
    np.testing.assert_array_equal(embed(ids), store.lookup(state, ids))
    found = embed.find(ids)
    np.testing.assert_array_equal(found.entries, store.find(state, ids).entries)


def test_dense_optimizers_do_not_see_the_store():
    store = make_store()
    embed = fj.nnx.PagedEmbed(store.config, store.optimizer, rngs=nnx.Rngs(0))
    assert not jax.tree.leaves(nnx.state(embed, nnx.Param))
    assert isinstance(embed.state, fj.nnx.StoreState)
