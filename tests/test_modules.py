"""The flax modules are the bare store, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import fiited_jax as fj
from helpers import copy_state, make_store

STORE = fj.linen.STORE


def batches():
    rng = np.random.default_rng(0)
    for _ in range(6):
        ids = rng.integers(-2, 40, 32).astype(np.int32)
        tables = rng.integers(0, 4, 32).astype(np.int32)
        yield ids, tables, jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)


def train(embed, ids, tables, grads):
    """Every operation of a module that keeps its state; all that they return."""
    handle, admitted = embed.admit(ids, tables=tables)
    vectors = embed.gather(handle)
    applied = embed.apply_gradients(handle, grads)
    pruned = embed.prune_step()
    found = embed.find(ids, tables=tables)
    looked_up = embed(ids, tables=tables)
    return handle, admitted, vectors, applied, pruned, found, looked_up


def train_bare(store, state, ids, tables, grads):
    """`train`, with the bare store."""
    state, handle, admitted = store.admit(state, ids, tables=tables)
    vectors = store.gather(state, handle)
    state, applied = store.apply_gradients(state, handle, grads)
    state, pruned = store.prune_step(state)
    found = store.find(state, ids, tables=tables)
    looked_up = store.lookup(state, ids, tables=tables)
    return state, (handle, admitted, vectors, applied, pruned, found, looked_up)


class Counting:
    """Counts the traces of what it wraps."""

    def __init__(self, function):
        self.function, self.traces = function, 0

    def __call__(self, *args):
        self.traces += 1
        return self.function(*args)


class Nnx:
    """The nnx module."""

    def __init__(self, store):
        self.embed = fj.nnx.PagedEmbed(store.config, store.optimizer, rngs=nnx.Rngs(0))
        self.count = Counting(train)
        self.jitted = nnx.jit(self.count, donate_argnums=0)

    @property
    def state(self):
        return self.embed.state.get_value()

    def step(self, *batch):
        return self.jitted(self.embed, *batch)

    def report(self):
        return self.embed.memory_report(num_ids=1000)


class Linen:
    """The linen module, one `apply` for each operation."""

    def __init__(self, store):
        self.embed = fj.linen.PagedEmbed(store.config, store.optimizer)
        self.variables = self.embed.init(jax.random.key(0), jnp.zeros(2, jnp.int32))
        self.count = Counting(self.train)
        self.jitted = jax.jit(self.count, donate_argnums=0)

    @property
    def state(self):
        return self.variables[STORE]["state"]

    def train(self, store, ids, tables, grads):
        read = self.embed.apply
        write = functools.partial(read, mutable=[STORE])
        (handle, admitted), store = write(store, ids, tables=tables, method="admit")
        vectors = read(store, handle, method="gather")
        applied, store = write(store, handle, grads, method="apply_gradients")
        pruned, store = write(store, method="prune_step")
        found = read(store, ids, tables=tables, method="find")
        looked_up = read(store, ids, tables=tables)
        return store, (handle, admitted, vectors, applied, pruned, found, looked_up)

    def step(self, *batch):
        self.variables, out = self.jitted(self.variables, *batch)
        return out

    def report(self):
        return self.embed.apply(self.variables, num_ids=1000, method="memory_report")


class Parent(nn.Module):
    """A linen module whose submodule is the store's."""

    store: fj.EmbeddingStore

    def setup(self):
        self.embed = fj.linen.PagedEmbed(self.store.config, self.store.optimizer)

    def __call__(self, ids, tables, grads):
        return train(self.embed, ids, tables, grads)

    def report(self):
        return self.embed.memory_report(num_ids=1000)


class LinenSubmodule:
    """A submodule of a linen module, one `apply` for the whole step."""

    def __init__(self, store):
        self.parent = Parent(store)
        self.variables = jax.jit(self.parent.init)(jax.random.key(0), *next(batches()))
        self.count = Counting(functools.partial(self.parent.apply, mutable=[STORE]))
        self.jitted = jax.jit(self.count, donate_argnums=0)

    @property
    def state(self):
        return self.variables[STORE]["embed"]["state"]

    def step(self, *batch):
        out, self.variables = self.jitted(self.variables, *batch)
        return out

    def report(self):
        return self.parent.apply(self.variables, method="report")


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize(
    "make", [Nnx, Linen, pytest.param(LinenSubmodule, marks=pytest.mark.slow)]
)
def test_modules_equal_the_bare_store(make):
    store = make_store(fj.sparse(optax.adagrad(0.5)), scorer=fj.scorers.saliency())
    module = make(store)
    state = copy_state(module.state)
    bare = jax.jit(functools.partial(train_bare, store), donate_argnums=0)
    evicted, moved = 0, False
    for batch in batches():
        donated = module.state
        out = module.step(*batch)
        # A scalar that a step overwrites unread is no input of it.
        arrays = [leaf for leaf in jax.tree.leaves(donated) if leaf.size > 1]
        assert all(leaf.is_deleted() for leaf in arrays)
        state, expected = bare(state, *batch)
        assert_same((out, module.state), (expected, state))
        evicted += out[1].evicted
        moved |= out[4].moved
    assert evicted > 0
    assert moved
    assert module.count.traces == 1
    assert module.report() == store.memory_report(state, num_ids=1000)


def test_modules_know_what_pruning_needs():
    store = make_store()
    fields = store.config, store.optimizer
    expected = store.prune_temporary_bytes()
    assert expected > 0
    linen = fj.linen.PagedEmbed(*fields)  # static: needs no variables
    assert linen.store == store
    assert linen.prune_temporary_bytes() == expected
    embed = fj.nnx.PagedEmbed(*fields, rngs=nnx.Rngs(0))
    assert embed.prune_temporary_bytes() == expected


def test_the_nnx_state_is_no_param():
    store = make_store()
    embed = fj.nnx.PagedEmbed(store.config, store.optimizer, rngs=nnx.Rngs(0))
    assert not jax.tree.leaves(nnx.state(embed, nnx.Param))
    assert isinstance(embed.state, fj.nnx.StoreState)
