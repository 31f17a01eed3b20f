import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from fiited_jax.extent import (
    chunk_at_rank,
    extent_of,
    first_chunks,
    frame_of,
    num_present,
    present_chunks,
)
from helpers import make_config

CASES = [("lengths", 5), ("chunks", 5), ("chunks", 32), ("lengths", 300)]


def masks_of(ranking, num_chunks):
    """Some masks that an extent can hold, `bool[n, K]`."""
    if ranking == "lengths":
        lengths = np.unique(np.linspace(0, num_chunks, 40).astype(int))
        return np.arange(num_chunks) < lengths[:, None]
    if num_chunks <= 8:
        return np.array(list(itertools.product([False, True], repeat=num_chunks)))
    rng = np.random.default_rng(0)
    random = rng.random((40, num_chunks)) < 0.5
    ends = np.array([[False] * num_chunks, [True] * num_chunks])
    return np.concatenate([random, ends])


@pytest.mark.parametrize(("ranking", "num_chunks"), CASES)
def test_an_extent_tells_what_the_mask_told(ranking, num_chunks):
    config = make_config(ranking=ranking, embedding_dim=num_chunks, chunk_dim=1)
    mask = masks_of(ranking, num_chunks)
    extent = extent_of(jnp.asarray(mask), config)
    assert extent.dtype == config.extent_dtype
    np.testing.assert_array_equal(present_chunks(extent, config), mask)
    np.testing.assert_array_equal(num_present(extent, config), mask.sum(axis=1))
    for row, start in zip(range(len(mask)), itertools.count(10)):
        owned = np.flatnonzero(mask[row])
        frames = np.zeros(num_chunks, int)
        frames[owned] = start + np.arange(len(owned))
        chunks = jnp.arange(num_chunks)
        starts = jnp.full(num_chunks, start)
        got = frame_of(starts, jnp.full(num_chunks, extent[row]), chunks, config)
        np.testing.assert_array_equal(got, frames)
        ranks = jnp.arange(len(owned))
        got = chunk_at_rank(jnp.full(len(owned), extent[row]), ranks, config)
        np.testing.assert_array_equal(got, owned)


@pytest.mark.parametrize(("ranking", "num_chunks"), CASES)
def test_first_chunks(ranking, num_chunks):
    config = make_config(ranking=ranking, embedding_dim=num_chunks, chunk_dim=1)
    counts = np.arange(num_chunks + 1, dtype=np.int32)
    got = present_chunks(first_chunks(jnp.asarray(counts), config), config)
    np.testing.assert_array_equal(got, np.arange(num_chunks) < counts[:, None])


@pytest.mark.parametrize(
    ("ranking", "num_chunks", "num_bytes"),
    [
        ("lengths", 16, 1),
        ("lengths", 256, 2),
        ("chunks", 8, 1),
        ("chunks", 9, 2),
        ("chunks", 32, 4),
    ],
)
def test_extents_are_as_narrow_as_they_can_be(ranking, num_chunks, num_bytes):
    config = make_config(ranking=ranking, embedding_dim=num_chunks, chunk_dim=1)
    assert config.extent_dtype.itemsize == num_bytes
