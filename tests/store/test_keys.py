import jax.numpy as jnp
import numpy as np
import pytest

import fiited_jax as fj
from fiited_jax.keys import canonicalize_ids, canonicalize_tables, hash_words


def test_keys_from_int64_keeps_every_bit():
    ids = np.array([0, 7, -1, -2, (5 << 32) | 9, -(1 << 63)], np.int64)
    keys = fj.keys_from_int64(ids)
    back = keys.low.astype(np.uint64) | keys.high.astype(np.uint64) << np.uint64(32)
    np.testing.assert_array_equal(back.view(np.int64), ids)


def test_padding_of_every_form():
    keys = fj.keys_from_int64(np.array([-1, -2, 0], np.int64))
    np.testing.assert_array_equal(canonicalize_ids(keys)[1], [False, True, True])
    ids = np.array([-1, -5, 0], np.int32)
    np.testing.assert_array_equal(canonicalize_ids(ids)[1], [False, False, True])
    words = np.array([0xFFFFFFFF, 0], np.uint32)
    np.testing.assert_array_equal(canonicalize_ids(words)[1], [True, True])
    assert not canonicalize_ids(fj.PADDING_KEY)[1]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.array([1.0]), "float64"),
        (np.array([1], np.int64), "keys_from_int64"),
        (np.array([1], np.int16), "int16"),
        ([1, 2], "list"),
        (fj.Keys(np.array([1], np.int32), np.array([1], np.uint32)), "ids.low"),
    ],
)
def test_ids_of_another_type_are_refused(ids, words):
    with pytest.raises(TypeError, match=words):
        canonicalize_ids(ids)


def test_words_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(1,\) and \(2,\)"):
        canonicalize_ids(fj.Keys(np.zeros(1, np.uint32), np.zeros(2, np.uint32)))


def test_tables_broadcast_and_are_checked():
    tables, valid = canonicalize_tables(np.arange(3), (2, 3), 2)
    np.testing.assert_array_equal(tables, [[0, 1, -1]] * 2)
    np.testing.assert_array_equal(valid, [[True, True, False]] * 2)
    with pytest.raises(ValueError, match=r"\[0, 2\), got 2"):
        canonicalize_tables(2, (3,), 2)
    with pytest.raises(TypeError, match="float"):
        canonicalize_tables(np.zeros(3, np.float32), (3,), 2)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        canonicalize_tables(np.zeros(4, np.int32), (3,), 2)


def test_hash_spreads_every_word_over_buckets():
    count = 1 << 14
    words = jnp.arange(count, dtype=jnp.uint32)
    zero = jnp.zeros_like(words)
    for arguments in ((words, zero, zero), (zero, words, zero), (zero, zero, words)):
        mixed = np.asarray(hash_words(*arguments))
        assert len(np.unique(mixed)) == count
        load = np.bincount(mixed % 1024, minlength=1024)
        # Poisson(16): variance near the mean, no empty region.
        assert 0.8 < load.var() / load.mean() < 1.2
