"""The baselines' table against a dense table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fiited_jax as fj
from fiited_jax.methods.table_embed import TableEmbed, rows_within, table_bytes
from helpers import tolerance


def make(num_rows=10, *, hashed=False):
    return TableEmbed(
        num_rows,
        4,
        fj.sparse(optax.sgd(0.5)),
        initial_scale=0.1,
        hashed=hashed,
        rngs=nnx.Rngs(0),
    )


def test_duplicates_are_summed_and_step_once():
    embed = make()
    everyone = np.arange(10, dtype=np.int32)
    table = np.asarray(embed(everyone)).copy()
    assert np.abs(table).min() > 0
    ids = np.array([[3, 3], [7, -1], [3, 9]], np.int32)
    grads = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    handle, _ = embed.admit(ids)
    np.testing.assert_array_equal(embed.gather(handle)[1, 1], np.zeros(4))
    info = embed.apply_gradients(handle, jnp.asarray(grads))
    assert int(info.updated) == 3
    for row, grad in zip(ids.reshape(-1), grads.reshape(-1, 4), strict=True):
        if row >= 0:
            table[row] -= 0.5 * grad
    np.testing.assert_allclose(embed(everyone), table, **tolerance(4))


def test_hashed_ids_share_rows_by_table():
    embed = make(hashed=True)
    live = sum(leaf.nbytes for leaf in jax.tree.leaves(embed.state.get_value()))
    assert live == embed.memory_report().all_in_bytes
    assert live == table_bytes(10, 4, embed.optimizer)
    ids = np.arange(200, dtype=np.int32)
    vectors = np.asarray(embed(ids, tables=0))
    assert len(np.unique(vectors, axis=0)) == 10
    assert not np.array_equal(vectors, embed(ids, tables=1))


@pytest.mark.parametrize("num_bytes", [0, 500, 5000, 77_777])
def test_rows_within_is_the_most_that_fits(num_bytes):
    optimizer = fj.sparse(optax.adagrad(0.1))
    rows = rows_within(num_bytes, 16, optimizer)
    assert rows == 0 or table_bytes(rows, 16, optimizer) <= num_bytes
    assert table_bytes(rows + 1, 16, optimizer) > num_bytes


@pytest.mark.parametrize("width", [16, 24, 128])
def test_what_fits_exactly_is_not_refused(width):
    optimizer = fj.sparse(optax.sgd(0.1))  # no slots: nothing but the values
    for rows in (1, 7, 1023):
        assert (
            rows_within(table_bytes(rows, width, optimizer), width, optimizer) >= rows
        )
