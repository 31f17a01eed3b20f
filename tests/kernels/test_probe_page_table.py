"""The kernels of `probe_page_table`, interpreted, against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chips import H100, RACES, V6E
from jax.sharding import AbstractMesh, use_abstract_mesh

import pallas_kernels as pk
from pallas_kernels import mosaic_tpu, triton

pytestmark = pytest.mark.usefixtures("no_races")
NUM_BUCKETS = 8


def make_case(shape, num_ways, dtypes, num_buckets=NUM_BUCKETS, seed=0):
    """Words so few that some match alone, some keys come twice, some nowhere."""
    rng = np.random.default_rng(seed)
    kinds = 1 + round((2 * num_ways) ** (1 / len(dtypes)))
    size = num_buckets * num_ways
    words = [rng.integers(0, kinds, size).astype(dtype) for dtype in dtypes]
    queries = [rng.integers(0, kinds, shape).astype(dtype) for dtype in dtypes]
    buckets = rng.integers(0, num_buckets, shape).astype(np.int32)
    arrays = jax.tree.map(jnp.asarray, (tuple(words), tuple(queries), buckets))
    return (*arrays, num_ways)


def by_loop(words, queries, buckets, num_ways):
    """Look at one way after the other."""
    found = np.full(buckets.shape, pk.NO_WAY, np.int32)
    for place in np.ndindex(buckets.shape):
        for way in range(num_ways):
            at = int(buckets[place]) * num_ways + way
            pairs = zip(words, queries, strict=True)
            if all(word[at] == query[place] for word, query in pairs):
                found[place] = way
                break
    return found


DTYPES = [(np.uint32,), (np.uint32, np.uint8), (np.uint32, np.uint16, np.uint32)]


@pytest.mark.parametrize("dtypes", DTYPES, ids=["one", "two", "three"])
@pytest.mark.parametrize("num_ways", [1, 8, 32])
def test_triton_finds_what_the_reference_and_a_loop_find(
    num_ways, dtypes, small_blocks
):
    case = make_case((7, 11), num_ways, dtypes)
    found = triton.probe_and_load(*case, (), interpret=True)[0]
    np.testing.assert_array_equal(found, pk.probe_page_table(*case))
    np.testing.assert_array_equal(found, by_loop(*jax.tree.map(np.asarray, case)))
    assert found.dtype == jnp.int32
    assert np.any(np.asarray(found) == pk.NO_WAY)
    assert np.any(np.asarray(found) > 0) or num_ways == 1


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), (64,), (65,)])
def test_triton_takes_any_number_of_queries(shape):
    case = make_case(shape, 32, DTYPES[1])
    found = triton.probe_and_load(*case, (), interpret=True)[0]
    assert found.shape == shape
    np.testing.assert_array_equal(found, pk.probe_page_table(*case))


@pytest.mark.parametrize("dtypes", DTYPES, ids=["one", "two", "three"])
@pytest.mark.parametrize("num_ways", [1, 8, 32, 128])
def test_mosaic_tpu_finds_what_the_reference_finds(num_ways, dtypes):
    """In words of three pieces or more, of which buckets are the first and last."""
    num_buckets = 1536 // num_ways
    case = make_case((3, 50), num_ways, dtypes, num_buckets)
    buckets = case[2].at[:2, 0].set(jnp.array([0, num_buckets - 1]))
    case = (*case[:2], buckets, num_ways)
    found = mosaic_tpu.probe_and_load(*case, (), interpret=RACES)[0]
    np.testing.assert_array_equal(found, pk.probe_page_table(*case))
    assert (found.dtype, found.shape) == (jnp.int32, (3, 50))
    assert np.any(np.asarray(found) == pk.NO_WAY)
    assert np.any(np.asarray(found) > 0) or num_ways == 1


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), (128,), (129,)])
def test_mosaic_tpu_takes_any_number_of_queries(shape):
    case = make_case(shape, 32, DTYPES[1], num_buckets=16)
    found = mosaic_tpu.probe_and_load(*case, (), interpret=RACES)[0]
    assert found.shape == shape
    np.testing.assert_array_equal(found, pk.probe_page_table(*case))


@pytest.mark.parametrize("kernels", [mosaic_tpu, triton])
@pytest.mark.parametrize("shape", [(150,), (3, 0)])
@pytest.mark.parametrize("num_ways", [1, 32])
def test_what_entries_hold_is_loaded_with_them(kernels, num_ways, shape):
    case = make_case(shape, num_ways, DTYPES[1], 1536 // num_ways)
    rng = np.random.default_rng(1)
    columns = tuple(
        jnp.asarray(rng.integers(1, np.iinfo(dtype).max, 1536, dtype, endpoint=True))
        for dtype in (np.uint16, np.int32, np.uint8)
    )
    interpret = RACES if kernels is mosaic_tpu else True
    ways, loaded = kernels.probe_and_load(*case, columns, interpret=interpret)
    expected_ways, expected = pk.probe_and_load(*case, columns)
    np.testing.assert_array_equal(ways, expected_ways)
    np.testing.assert_array_equal(ways, by_loop(*jax.tree.map(np.asarray, case)))
    entries = np.asarray(case[2]) * num_ways + np.asarray(ways)
    for got, by_xla, column in zip(loaded, expected, columns, strict=True):
        assert got.dtype == by_xla.dtype == column.dtype
        by_hand = np.where(ways == pk.NO_WAY, 0, np.asarray(column)[entries])
        np.testing.assert_array_equal(got, by_hand)
        np.testing.assert_array_equal(by_xla, by_hand)
        assert 0 not in shape or not got.size


def test_words_and_columns_may_have_two_axes():
    word = jnp.arange(64, dtype=jnp.int32).reshape(8, 8)
    queries, buckets = (jnp.int32([5, 17, 99]),), jnp.int32([0, 2, 1])
    arguments = (word,), queries, buckets, 8, (10 * word,)
    for ways, (loaded,) in (
        triton.probe_and_load(*arguments, interpret=True),
        pk.probe_and_load(*arguments),
    ):
        assert ways.tolist() == [5, 1, -1]
        assert loaded.tolist() == [50, 170, 0]


def test_a_column_is_like_a_word():
    case = make_case((5,), 8, DTYPES[0])
    for column in (jnp.zeros(63, jnp.int32), jnp.zeros(64)):
        with pytest.raises(ValueError, match=r"columns\[0\] must hold integers of sh"):
            pk.probe_and_load(*case, (column,))


def test_words_of_all_bits_are_told_apart():
    high = jnp.tile(jnp.uint32([0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0]), 32)
    short = (high >> 24).astype(jnp.uint8)
    words = (high, jnp.tile(short, 4))
    case = (words, (high[3::-1], short[3::-1]), jnp.zeros(4, jnp.int32), 4)
    found = triton.probe_and_load(*case, (), interpret=True)[0]
    np.testing.assert_array_equal(found, [3, 2, 1, 0])
    found = mosaic_tpu.probe_and_load(*case, (), interpret=RACES)[0]
    np.testing.assert_array_equal(found, [3, 2, 1, 0])


@pytest.mark.parametrize(
    ("implementation", "device", "platform"),
    [("triton", H100, "cuda"), ("mosaic_tpu", V6E, "tpu")],
)
def test_it_lowers_for_its_platform(implementation, device, platform):
    words, queries, buckets, _ = make_case((300,), 32, DTYPES[2], num_buckets=16)

    def probe(words, queries, buckets):
        return pk.probe_page_table(
            words, queries, buckets, 32, implementation=implementation
        )

    with use_abstract_mesh(AbstractMesh((1,), ("device",), abstract_device=device)):
        traced = jax.jit(probe).trace(words, queries, buckets)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "probe_page_table" in text


@pytest.mark.parametrize(
    ("implementation", "num_ways", "dtypes", "words"),
    [
        ("triton", 24, DTYPES[0], "num_ways that is a power of 2, got 24"),
        ("mosaic_tpu", 24, DTYPES[0], "num_ways that divides 128, got 24"),
        ("mosaic_tpu", 4, DTYPES[0], r"multiple of 128; got shape \(32,\)"),
        ("mosaic_tpu", 32, DTYPES[1], r"uint8 a multiple of 512; got shape \(256,\)"),
        ("mosaic_tpu", 32, (np.float32,), "at most 32 bits, got float32"),
        ("sparsecore", 32, DTYPES[0], "'sparsecore' is not available; allowed are"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused(implementation, num_ways, dtypes, words):
    case = make_case((5,), num_ways, dtypes)
    with pytest.raises(NotImplementedError, match=words):
        pk.probe_page_table(*case, implementation=implementation)
