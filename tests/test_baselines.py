"""The rules of the baselines, worked by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fiited_jax as fj
from fiited_jax.chunk_pool import read_values, write_fresh
from fiited_jax.keys import Keys
from fiited_jax.methods import hot_sketch
from fiited_jax.methods.cafe_embed import CafeEmbed
from fiited_jax.methods.mixed_dim import grow_dims
from fiited_jax.methods.mixed_dim_embed import (
    MixedDimEmbed,
    MixedDimState,
    mixed_dim_bytes,
)
from fiited_jax.methods.pep_embed import (
    PepEmbed,
    soft_threshold,
    soft_threshold_grads,
)
from fiited_jax.methods.qr import QuotientRemainderEmbed, split_rows
from fiited_jax.training.loop import digest
from helpers import tolerance

HALF = fj.sparse(optax.sgd(0.5))


def write(pool, first, rows):
    frames = jnp.arange(first, first + len(rows), dtype=jnp.int32)
    return write_fresh(pool, frames, jnp.asarray(rows, jnp.float32), HALF)


def read(pool, frames, width):
    return np.asarray(read_values(pool, jnp.asarray(frames, jnp.int32), width))


def test_qr_steps_along_the_gradients_of_the_product():
    embed = QuotientRemainderEmbed(3, 3, 2, HALF, initial_scale=0.1, rngs=nnx.Rngs(0))
    start = np.asarray(embed(np.arange(7, dtype=np.int32)))
    assert 0.03 < np.max(np.abs(start)) <= 0.1
    np.testing.assert_array_equal(start[0], start[3])  # quotient rows start at one
    pool = embed.state.get_value()
    pool = write(pool, 3, [[0.5, 4.0]])  # remainder 2
    embed.state.set_value(write(pool, 4, [[2.0, 1.0], [3.0, -1.0]]))  # quotients 0, 1
    handle, _ = embed.admit(np.array([5, 5, 2, -1], np.int32))
    np.testing.assert_array_equal(
        embed.gather(handle), [[1.5, -4.0], [1.5, -4.0], [1.0, 4.0], [0.0, 0.0]]
    )
    grads = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [9.0, 9.0]])
    info = embed.apply_gradients(handle, grads)
    assert (int(info.updated), int(info.non_finite)) == (3, 0)
    # Quotient 0: [0.5, 4] of id 2; quotient 1: [0.5, 8] of ids 5; remainder 2:
    # [1, 2] * [3, -1] + [1, 1] * [2, 1] = [5, -1].
    np.testing.assert_allclose(
        read(embed.state.get_value(), [4, 5, 3], 2),
        [[1.75, -1.0], [2.75, -5.0], [-2.0, 4.5]],
        **tolerance(3),
    )


def test_qr_takes_the_most_remainder_rows_that_fit():
    for num_pairs in (1, 2, 15, 16, 17, 100):
        for num_rows in range(num_pairs + 3):
            fitting = [
                m for m in range(1, num_pairs + 1) if m + -(-num_pairs // m) <= num_rows
            ]
            split = split_rows(num_rows, num_pairs)
            assert (split or (None,))[0] == max(fitting, default=None)


def test_mixed_dim_follows_the_power_law():
    # n^0.3 is 8, 2^4.5 and 64: at d_3 = 2 the law gives 16 and 5.66 for the others.
    sizes = [2**10, 2**15, 2**20]

    def dims(of, spare):
        budget = mixed_dim_bytes(sizes, of, 16, HALF) + spare
        return grow_dims(sizes, 16, budget, HALF)

    assert dims([16, 5, 2], 0) == [16, 5, 2]
    assert dims([16, 5, 2], 2**18 + 2**10) == [16, 7, 2]  # columns and their lines
    # No third column without its line: what is left widens the second table.
    assert dims([16, 5, 2], 4 * 2**20) == [16, 16, 2]
    assert dims([16, 5, 2], -1) == [16, 16, 1]
    assert dims([16, 11, 4], 0) == [16, 11, 4]
    # A table of one row takes less without a projection.
    assert grow_dims([1, 0, 2**20], 16, 5 * 2**20, HALF) == [16, 16, 1]


def test_mixed_dim_steps_rows_and_projections():
    embed = MixedDimEmbed(
        [2, 0, 1], [1, 2, 2], 2, HALF, initial_scale=0.1, rngs=nnx.Rngs(0)
    )
    state = embed.state.get_value()
    embed.state.set_value(
        MixedDimState(
            rows=(
                write(state.rows[0], 1, [[2.0], [3.0]]),
                write(state.rows[1], 1, [[5.0, 6.0]]),
            ),
            projections=write(state.projections, 1, [[1.0, -1.0]]),
        )
    )
    handle, _ = embed.admit(np.array([[0, 1, 0], [2, -1, -1]], np.int32))
    np.testing.assert_array_equal(
        embed.gather(handle),
        [[[2, -2], [3, -3], [2, -2]], [[5, 6], [0, 0], [0, 0]]],
    )
    grads = jnp.array([[[1, 0], [0, 1], [1, 1]], [[1, 2], [7, 7], [7, 7]]], jnp.float32)
    info = embed.apply_gradients(handle, grads)
    assert (int(info.updated), int(info.non_finite)) == (4, 0)
    state = embed.state.get_value()
    # Row 0: [1, -1] . [2, 1] = 1; row 1: [1, -1] . [0, 1] = -1; the projection:
    # 2 * [2, 1] + 3 * [0, 1] = [4, 5].
    np.testing.assert_array_equal(read(state.rows[0], [1, 2], 1), [[1.5], [3.5]])
    np.testing.assert_array_equal(read(state.rows[1], [1], 2), [[4.5, 5.0]])
    np.testing.assert_array_equal(read(state.projections, [1], 2), [[-1.0, -3.5]])
    # Without a lookup in its table a matrix is not stepped.
    handle, _ = embed.admit(np.array([2], np.int32))
    assert int(embed.apply_gradients(handle, jnp.ones((1, 2))).updated) == 1


def test_mixed_dim_starts_with_the_variance_of_the_other_methods():
    embed = MixedDimEmbed(
        [5000, 5000], [4, 16], 16, HALF, initial_scale=0.1, rngs=nnx.Rngs(0)
    )
    vectors = np.asarray(embed(np.arange(10000, dtype=np.int32)))
    expected = 0.1 / 3**0.5
    assert np.std(vectors[5000:]) == pytest.approx(expected, rel=0.02)
    assert np.std(vectors[:5000]) == pytest.approx(expected, rel=0.35)


def keys(*ids):
    low = jnp.array(ids, jnp.uint32)
    return Keys(low, jnp.zeros_like(low)), jnp.zeros(len(ids), jnp.int32)


@jax.jit
def note(sketch, key, tables, scores):
    return hot_sketch.insert(sketch, key, tables, scores, scores > 0)


def insert(sketch, *pairs):
    ids, scores = zip(*pairs, strict=True)
    return note(sketch, *keys(*ids), jnp.array(scores, jnp.float32))


def cells(sketch):
    return dict(zip(sketch.key_low.tolist(), sketch.score.tolist(), strict=True))


def test_cafe_replaces_the_id_of_the_lowest_score():
    sketch = hot_sketch.init_sketch(1, 3, 32)  # one bucket of four cells
    sketch = insert(sketch, (1, 5.0), (2, 3.0), (3, 4.0), (4, 2.0))
    assert cells(sketch) == {1: 5, 2: 3, 3: 4, 4: 2}
    sketch = insert(sketch, (9, 1.0))
    assert cells(sketch) == {1: 5, 2: 3, 3: 4, 9: 3}
    sketch = insert(sketch, (7, 0.5))  # 2 and 9 are equal: the first cell
    assert cells(sketch) == {1: 5, 7: 3.5, 3: 4, 9: 3}
    sketch = insert(sketch, (6, 1.0), (8, 1.0), (8, 1.0), (9, 1.0), (1, 1.0))
    # 9 has 4 and 1 has 6 before 6 takes the cell of 7, 8 that of 3, and 8 again.
    assert cells(sketch) == {1: 6, 6: 4.5, 8: 6, 9: 4}
    # Wider ids than 32 bits are not noted, nor taken for others.
    wide = Keys(jnp.array([1], jnp.uint32), jnp.array([1], jnp.uint32))
    tables = jnp.zeros(1, jnp.int32)
    assert cells(note(sketch, wide, tables, jnp.ones(1))) == cells(sketch)
    assert hot_sketch.find_cells(sketch, wide, tables, tables == 0).tolist() == [-1]
    assert float(sketch.mass) == 20.5

    at = hot_sketch.find_cells(sketch, *keys(9, 8, 1, 8), jnp.ones(4, bool))
    assert at.tolist() == [3, 2, 0, 2]
    sketch, frames = hot_sketch.promote(sketch, at, 6.0)
    assert frames.tolist() == [0, 1, 0, 0]  # 8 came before 1, which finds none left
    assert sketch.frame.tolist() == [0, 0, 1, 0]
    lowest = dataclasses.replace(sketch, score=sketch.score.at[2].set(0.5))
    assert cells(insert(lowest, (5, 9.0))) == cells(lowest)  # its cell is hot

    sketch, count = hot_sketch.cool(sketch, 6.0)
    assert (int(count), int(sketch.num_free)) == (1, 1)
    assert sketch.frame.tolist() == [0, 0, 0, 0]
    assert sketch.free.tolist() == [1]
    assert float(sketch.mass) == 0
    factor = 0.99 ** (20.5 / (10 * 1 * 6.0))
    np.testing.assert_allclose(
        sketch.score, np.array([6, 4.5, 6, 4]) * factor, **tolerance(1)
    )


def test_cafe_tells_ids_of_64_bits_and_tables_apart():
    sketch = hot_sketch.init_sketch(4, 3, 64)
    words = Keys(jnp.array([1, 1, 1], jnp.uint32), jnp.array([0, 1, 0], jnp.uint32))
    tables = jnp.array([0, 0, 2], jnp.int32)
    sketch = note(sketch, words, tables, jnp.array([1.0, 2.0, 4.0]))
    at = hot_sketch.find_cells(sketch, words, tables, jnp.ones(3, bool))
    assert sketch.score[at].tolist() == [1.0, 2.0, 4.0]
    live = sum(leaf.nbytes for leaf in jax.tree.leaves(sketch))
    assert live == hot_sketch.sketch_bytes(4, 3, 64)


def test_cafe_moves_an_id_to_a_row_of_its_own_and_back():
    embed = CafeEmbed(
        1,
        1,
        2,
        HALF,
        num_tables=2,
        id_bits=32,
        threshold=2.5,
        initial_scale=0.1,
        rngs=nnx.Rngs(0),
    )
    ids = np.array([4, 7, 4, -1], np.int32)
    pool = write(embed.state.get_value().pool, 2, [[8.0, 8.0]])  # the shared row
    embed.state.set_value(dataclasses.replace(embed.state.get_value(), pool=pool))
    grads = jnp.array([[3.0, 4.0], [0.0, 2.0], [0.0, 5.0], [1.0, 1.0]])
    handle, _ = embed.admit(ids)
    assert handle.frames.tolist() == [2, 2, 2, 0]
    embed.apply_gradients(handle, grads)
    # The norms are 5, 2, 5, their mean 4: id 4 has 2.5 and is hot.
    np.testing.assert_allclose(
        cells(embed.state.get_value().sketch)[4], 2.5, **tolerance(3)
    )
    row = [8 - 1.5, 8 - 5.5]
    np.testing.assert_allclose(embed(ids), [row, row, row, [0, 0]], **tolerance(3))
    handle, _ = embed.admit(ids)
    assert handle.frames.tolist() == [1, 2, 1, 0]
    np.testing.assert_array_equal(embed.admit(ids, tables=1)[0].frames, [2, 2, 2, 0])
    embed.apply_gradients(handle, jnp.array([[2.0, 0], [0, 2], [2, 0], [jnp.nan, 1]]))
    own, shared = [row[0] - 2, row[1]], [row[0], row[1] - 1]
    np.testing.assert_allclose(embed(ids)[:2], [own, shared], **tolerance(3))
    for expected in (4.5 * 0.99 ** (6 / 25), 4.5 * 0.99 ** (6 / 25)):
        info = embed.prune_step()  # decays for the mass since the last one
        assert (int(info.freed), int(info.frames_used)) == (0, 1)
        sketch = embed.state.get_value().sketch
        np.testing.assert_allclose(cells(sketch)[4], expected, **tolerance(3))
    cold = dataclasses.replace(sketch, score=sketch.score * 0.5)
    embed.state.set_value(dataclasses.replace(embed.state.get_value(), sketch=cold))
    assert int(embed.prune_step().freed) == 1
    np.testing.assert_allclose(embed(ids)[:2], [shared, shared], **tolerance(3))


def test_pep_reads_what_exceeds_the_threshold():
    # Sigmoids of 1/2, 1/4 and 1/2: above, above with a minus, below.
    values = jnp.array([0.75, -0.5, 0.25])
    thresholds = jnp.array([0.0, -np.log(3.0), 0.0], jnp.float32)
    close = tolerance(3)
    np.testing.assert_allclose(
        soft_threshold(values, thresholds), [0.25, -0.25, 0.0], **close
    )
    grads = jnp.array([2.0, 8.0, 4.0])
    by_hand = soft_threshold_grads(values, thresholds, grads)
    np.testing.assert_array_equal(by_hand[0], [2, 8, 0])
    np.testing.assert_allclose(by_hand[1], [-0.5, 1.5, 0], **close)  # 1/4, 3/16
    derived = jax.vjp(soft_threshold, values, thresholds)[1](grads)
    for ours, theirs in zip(by_hand, derived, strict=True):
        np.testing.assert_allclose(ours, theirs, **close)
    bad = soft_threshold_grads(values, thresholds, jnp.array([jnp.nan, 1, jnp.inf]))
    assert np.isfinite(bad[0]).tolist() == [False, True, False]


step_pep = nnx.jit(PepEmbed.apply_gradients, donate_argnums=0)


def make_pep(optimizer=HALF, *, num_kept=3):
    return PepEmbed(
        3,
        2,
        optimizer,
        num_kept=num_kept,
        initial_scale=0.1,
        initial_threshold=-15.0,
        threshold_decay=0.25,
        rngs=nnx.Rngs(0),
    )


def fill_pep(embed, values, thresholds):
    """Overwrite all values and thresholds, and leave the slots."""

    def fill(pool, rows):
        flat = pool.values.reshape(-1).at[2:8].set(np.ravel(rows))
        return dataclasses.replace(pool, values=flat.reshape(pool.values.shape))

    state = embed.state.get_value()
    state = dataclasses.replace(
        state,
        rows=fill(state.rows, values),
        thresholds=fill(state.thresholds, thresholds),
    )
    embed.state.set_value(state)


def read_pep(embed):
    """Return all values and thresholds."""
    state = embed.state.get_value()
    return [read(pool, [1, 2, 3], 2) for pool in (state.rows, state.thresholds)]


def slots_of(state):
    return [digest(pool.slots) for pool in (state.rows, state.thresholds)]


def test_pep_steps_values_and_thresholds():
    embed = make_pep()
    third = -float(np.log(3.0))  # whose sigmoid is 1/4
    fill_pep(embed, [[0.75, -0.5], [1.0, 0.25], [2, 2]], [[0, third], [0, 0], [-4, -4]])
    handle, _ = embed.admit(np.array([[0, 1], [0, -1]], np.int32))
    np.testing.assert_allclose(
        embed.gather(handle),
        [[[0.25, -0.25], [0.5, 0.0]], [[0.25, -0.25], [0.0, 0.0]]],
        **tolerance(3),
    )
    grads = jnp.array([[[1, 4], [2, 6]], [[1, 4], [9, 9]]], jnp.float32)
    info = step_pep(embed, handle, grads)
    assert (int(info.updated), int(info.non_finite)) == (2, 0)
    values, thresholds = read_pep(embed)
    # Id 0 has the sums [2, 8]; the second value of id 1 is below its threshold.
    np.testing.assert_array_equal(values, [[-0.25, -4.5], [0, 0.25], [2, 2]])
    # By hand, with a quarter of the threshold: [-1/2, 3/2 + third / 4], [-1/2, 0].
    np.testing.assert_allclose(
        thresholds,
        [[0.25, third - 0.75 - third / 8], [0.25, 0], [-4, -4]],
        **tolerance(3),
    )


def test_pep_keeps_what_exceeds_its_threshold_most_and_starts_again():
    adagrad = fj.sparse(optax.adagrad(0.5))
    embed, fresh = make_pep(adagrad), make_pep(adagrad).state.get_value()
    first, thresholds = read_pep(embed)
    np.testing.assert_array_equal(thresholds, -15.0)
    handle, _ = embed.admit(np.arange(3, dtype=np.int32))
    step_pep(embed, handle, jnp.ones((3, 2)))
    assert slots_of(embed.state.get_value()) != slots_of(fresh)
    # |v| - 1/2 and, where s is very low, |v|; three of them tie for the last two.
    fill_pep(embed, [[0.25, -1.0], [0.5, 0.5], [-2.0, 1.0]], [[0, 0], [0, -99], [0, 0]])
    nnx.jit(PepEmbed.restart, donate_argnums=0)(embed)
    is_kept = np.array([[False, True], [False, True], [True, False]])
    values, _ = read_pep(embed)
    np.testing.assert_array_equal(values, np.where(is_kept, first, 0))
    np.testing.assert_array_equal(embed(np.arange(3, dtype=np.int32)), values)
    assert slots_of(embed.state.get_value()) == slots_of(fresh)
    # From now on the mask stays, and kept values learn as those of a table.
    for _ in range(2):
        before = read_pep(embed)
        step_pep(embed, handle, jnp.ones((3, 2)))
        values, thresholds = read_pep(embed)
        np.testing.assert_array_equal(values != before[0], is_kept)
        np.testing.assert_array_equal(thresholds, before[1])
        np.testing.assert_array_equal(embed(np.arange(3, dtype=np.int32)), values)
    assert embed.memory_report().kept_values == 3 * 4
