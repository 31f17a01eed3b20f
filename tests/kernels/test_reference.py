"""The reference against plain NumPy loops."""

import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from fiited_jax.sizes import pool_line_shape


def make_pool(num_frames, chunk_dim, *, flat=False, dtype=np.float32):
    rng = np.random.default_rng(num_frames + chunk_dim)
    shape = pool_line_shape(num_frames, chunk_dim)
    pool = rng.normal(size=shape).astype(dtype)
    pool.reshape(-1)[:chunk_dim] = 0
    return pool.reshape(-1) if flat else pool


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("chunk_dim", [1, 2, 4, 6, 16, 64, 128, 256])
def test_gather_chunks_reads_each_frame(chunk_dim, flat):
    pool = make_pool(37, chunk_dim, flat=flat)
    frames = np.random.default_rng(0).integers(0, 37, (5, 3)).astype(np.int32)
    expected = np.zeros((5, 3, chunk_dim), np.float32)
    for i in range(5):
        for j in range(3):
            start = frames[i, j] * chunk_dim
            expected[i, j] = pool.reshape(-1)[start : start + chunk_dim]
    got = pk.gather_chunks(jnp.asarray(pool), jnp.asarray(frames), chunk_dim)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("chunk_dim", [1, 2, 4, 6, 16, 64, 128, 256])
def test_scatter_chunks_writes_only_what_it_is_given(chunk_dim, flat):
    pool = make_pool(37, chunk_dim, flat=flat)
    frames = np.array([5, 0, 36, -1, 0, 1 << 30, 9], np.int32)
    chunks = np.random.default_rng(1).normal(size=(7, chunk_dim)).astype(np.float32)
    expected = pool.reshape(-1).copy()
    for i in (0, 2, 6):
        expected[frames[i] * chunk_dim : (frames[i] + 1) * chunk_dim] = chunks[i]
    got = pk.scatter_chunks(jnp.asarray(pool), jnp.asarray(frames), jnp.asarray(chunks))
    np.testing.assert_array_equal(np.asarray(got).reshape(-1), expected)


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, jnp.bfloat16])
def test_moves_are_exact_in_every_dtype(dtype):
    array = jnp.arange(24).astype(dtype)
    got, before = pk.exchange_windows(
        array, jnp.array([3, -1, 0]), jnp.ones((3, 4), dtype)
    )
    expected = np.arange(24)
    expected[12:16] = expected[0:4] = 1
    np.testing.assert_array_equal(np.asarray(got).astype(int), expected)
    np.testing.assert_array_equal(np.asarray(before[0]).astype(int), np.arange(12, 16))


def test_empty_batches_move_nothing():
    pool = jnp.asarray(make_pool(9, 4))
    none = jnp.zeros((0,), jnp.int32)
    assert pk.gather_chunks(pool, none, 4).shape == (0, 4)
    got = pk.scatter_chunks(pool, none, jnp.zeros((0, 4)))
    np.testing.assert_array_equal(got, pool)


def test_probe_needs_all_words_to_match():
    rng = np.random.default_rng(2)
    words = [rng.integers(0, 3, 32).astype(np.uint32) for _ in range(3)]
    queries = [rng.integers(0, 3, 40).astype(np.uint32) for _ in range(3)]
    buckets = rng.integers(0, 8, 40).astype(np.int32)
    expected = []
    for lane in range(40):
        ways = [
            way
            for way in range(4)
            if all(
                word[buckets[lane] * 4 + way] == query[lane]
                for word, query in zip(words, queries, strict=True)
            )
        ]
        expected.append(ways[0] if ways else pk.NO_WAY)
    got = pk.probe_page_table(
        tuple(map(jnp.asarray, words)),
        tuple(map(jnp.asarray, queries)),
        jnp.asarray(buckets),
        4,
    )
    assert any(way != pk.NO_WAY for way in expected)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p, f: pk.gather_chunks(p, f, 3), ValueError, "width=3"),
        (lambda p, f: pk.gather_chunks(p, f, 0), ValueError, "width=0"),
        (lambda p, f: pk.gather_chunks(p[None], f, 4), ValueError, "flat"),
        (lambda p, f: pk.gather_chunks(p, f.astype(float), 4), TypeError, "int32"),
        (
            lambda p, f: pk.gather_chunks(p, f, 4, implementation="mosaic_gpu"),
            NotImplementedError,
            "'mosaic_gpu'",
        ),
        (lambda p, f: pk.scatter_chunks(p, f[:1], p), ValueError, r"\(1,\)"),
        (
            lambda p, f: pk.probe_page_table((p[0],), (), f, 4),
            ValueError,
            "0 for 1 words",
        ),
        (
            lambda p, f: pk.probe_page_table((p[0],), (f,), f, 4),
            ValueError,
            "float32",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call(jnp.zeros((2, 128)), jnp.array([0, 1]))
