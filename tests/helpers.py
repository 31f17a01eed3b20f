"""What several tests share: tolerances, small stores, transitions, refusals."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fiited_jax as fj
from fiited_jax import cli

_BASE = {"float32": 1e-6, "bfloat16": 4e-3}


def tolerance(num_terms: int, dtype: str = "float32") -> dict[str, float]:
    """Tolerances for a sum of `num_terms`; moves and integers are compared exactly."""
    bound = _BASE[dtype] * max(num_terms, 1) ** 0.5
    return {"atol": bound, "rtol": bound}


def make_config(**fields) -> fj.EmbeddingConfig:
    """A small config; any field can be overridden."""
    defaults = {
        "embedding_dim": 8,
        "chunk_dim": 2,
        "num_entries": 64,
        "num_frames": 101,
        "num_tables": 4,
    }
    return fj.EmbeddingConfig(**{**defaults, **fields})


def make_store(optimizer=None, **fields) -> fj.EmbeddingStore:
    """A small store with Adagrad."""
    optimizer = optimizer or fj.sparse(optax.adagrad(0.5))
    return fj.EmbeddingStore(make_config(**fields), optimizer)


class Transitions(NamedTuple):
    """The store's functions, jitted once; states are donated."""

    admit: object
    apply: object
    prune: object
    lookup: object


@functools.cache
def jitted(store: fj.EmbeddingStore) -> Transitions:
    """Jit the transitions of a store, once per store."""
    return Transitions(
        jax.jit(store.admit, donate_argnums=0),
        jax.jit(store.apply_gradients, donate_argnums=0),
        jax.jit(store.prune_step, donate_argnums=0),
        jax.jit(store.lookup),
    )


def copy_state(state):
    """A deep copy, for states that are donated."""
    return jax.tree.map(jnp.copy, state)


def assert_same_state(left, right) -> None:
    """Compare two states bit by bit."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path)
        )


def refuse(arguments, words, capsys) -> None:
    """See that the command ends with status 2, these words and no traceback."""
    try:
        status = cli.main(arguments)
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status == 2
    assert words.replace("_", "-") in captured.err.replace("_", "-")
    assert "Traceback" not in captured.err
