"""What linen users do with the store's module: init, parents, optimizers, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import errors
from flax import linen as nn
from flax.training.train_state import TrainState

import fiited_jax as fj
from helpers import assert_same_state, make_store

STORE = fj.linen.STORE
IDS = jnp.arange(6)


class Model(nn.Module):
    """A model whose every method goes through a submodule."""

    store: fj.EmbeddingStore
    embed_class: type = fj.linen.PagedEmbed

    def setup(self):
        self.embed = self.embed_class(self.store.config, self.store.optimizer)
        self.top = nn.Dense(1)

    def __call__(self, ids):
        return self.head(self.embed(ids))

    def head(self, vectors):
        return self.top(vectors)[..., 0]

    def admit(self, ids):
        handle, _ = self.embed.admit(ids)
        return handle, self.embed.gather(handle)

    def apply_gradients(self, handle, grads):
        return self.embed.apply_gradients(handle, grads)

    def prune_step(self):
        return self.embed.prune_step()

    def train(self, ids):
        """A whole step in one call."""
        handle, vectors = self.admit(ids)
        self.apply_gradients(handle, jnp.ones_like(vectors))
        self.prune_step()
        return self.head(vectors)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def init(model, seed, ids, method="__call__"):
    return model.init(jax.random.key(seed), ids, method=method)


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables):
    return model.apply(variables, IDS, method="train", mutable=[STORE])


def make_model():
    model = Model(make_store())
    return model, init(model, 0, IDS)


def test_init_neither_admits_nor_steps():
    model, variables = make_model()
    trained = init(model, 0, IDS, method="train")
    assert_same_state(trained, variables)
    assert num_entries(model, variables) == 0
    _, updated = train(model, variables)
    assert num_entries(model, updated) == IDS.size


def num_entries(model, variables):
    report = model.apply(variables, method=lambda model: model.embed.memory_report())
    return report.tables[0].entries


def test_calling_writes_nothing():
    model, variables = make_model()
    _, same = model.apply(variables, IDS, mutable=[STORE])
    assert_same_state(same[STORE], variables[STORE])


def test_initial_values_follow_the_key_and_the_place():
    class Two(nn.Module):
        store: fj.EmbeddingStore

        def setup(self):
            embed = functools.partial(
                fj.linen.PagedEmbed, self.store.config, self.store.optimizer
            )
            self.left, self.right = embed(), embed()

        def __call__(self, ids):
            return [e.gather(e.admit(ids)[0]) for e in (self.left, self.right)]

    two = Two(make_store())

    @jax.jit
    def vectors(seed):
        variables = init(two, seed, IDS)
        out, _ = two.apply(variables, IDS, mutable=[STORE])
        return out

    left, right = vectors(0)
    assert np.asarray(left != 0).any(-1).all()
    assert (left != right).any()
    assert (left != vectors(1)[0]).any()
    np.testing.assert_array_equal(left, vectors(0)[0])


@pytest.mark.parametrize("method", ["admit", "apply_gradients", "prune_step"])
def test_an_immutable_collection_is_named(method):
    model, variables = make_model()

    def write(mutable):
        handle = model.apply(variables, IDS, method=lambda m, ids: m.embed.find(ids))
        args = {"admit": [IDS], "apply_gradients": [handle, jnp.ones((6, 8))]}
        return model.apply(
            variables, *args.get(method, []), method=method, mutable=mutable
        )

    jax.eval_shape(lambda: write([STORE]))
    with pytest.raises(
        errors.ModifyScopeVariableError, match=f'"/embed" .* "{STORE}" is immutable'
    ):
        jax.eval_shape(lambda: write([]))


def test_a_missing_collection_is_named():
    model, variables = make_model()
    with pytest.raises(errors.ScopeCollectionNotFound, match=f'"{STORE}" in "/embed"'):
        model.apply({"params": variables["params"]}, IDS)


class StoreTrainState(TrainState):
    """A train state that carries the collection beside `params`."""

    store: dict


def test_a_train_state_trains_both_and_optax_sees_params_only():
    model, variables = make_model()
    state = StoreTrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=optax.adam(0.05),
        store={STORE: variables[STORE]},
    )
    assert set(state.params) == {"top"}
    assert set(state.opt_state[0].mu) == {"top"}
    targets = jnp.where(IDS % 2, 1.0, -1.0)
    traces = 0

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, ids, targets):
        nonlocal traces
        traces += 1
        (handle, vectors), store = state.apply_fn(
            {"params": state.params, **state.store},
            ids,
            method="admit",
            mutable=[STORE],
        )

        def loss_fn(params, vectors):
            logits = state.apply_fn({"params": params}, vectors, method="head")
            return jnp.mean((logits - targets) ** 2)

        loss, (dense, grads) = jax.value_and_grad(loss_fn, argnums=(0, 1))(
            state.params, vectors
        )
        _, store = state.apply_fn(
            store, handle, grads, method="apply_gradients", mutable=[STORE]
        )
        _, store = state.apply_fn(store, method="prune_step", mutable=[STORE])
        return state.apply_gradients(grads=dense, store=store), loss

    losses = []
    for _ in range(40):
        donated = state
        state, loss = train_step(state, IDS, targets)
        # A scalar that a step overwrites unread is no input of it.
        arrays = [leaf for leaf in jax.tree.leaves(donated.store) if leaf.size > 1]
        assert all(leaf.is_deleted() for leaf in arrays)
        losses.append(float(loss))
    assert traces == 1
    assert losses[0] > 0.9
    assert losses[-1] < 0.01
    served = model.apply({"params": state.params, **state.store}, IDS)
    np.testing.assert_array_equal(served > 0, targets > 0)


@pytest.mark.parametrize(
    "lift", [nn.jit, pytest.param(nn.remat, marks=pytest.mark.slow)]
)
def test_a_lifted_module_is_the_same(lift):
    model, _ = make_model()
    methods = ["__call__", "admit", "gather", "apply_gradients", "prune_step"]
    lifted = Model(model.store, lift(fj.linen.PagedEmbed, methods=methods))
    variables = init(lifted, 0, IDS, method="train")
    assert num_entries(model, variables) == 0
    assert_same_state(train(lifted, variables), train(model, variables))
