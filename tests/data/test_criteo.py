"""The Criteo reader on generated files: values, splits and blocks."""

import gzip
import tracemalloc

import numpy as np
import pytest

from criteo_rows import (
    assert_holds,
    encode,
    expected,
    make_rows,
    write,
)
from fiited_jax.data import CriteoStream, DataError, Vocabulary
from stream_checks import assert_same, joined


def test_values_and_missing_values(tmp_path):
    first = ["1", "3", "", "-2", "0", *["7"] * 9, "ffffffff", "", "0", "00000a", "AB"]
    second = ["0", *[""] * 39]
    first += ["1"] * (40 - len(first))
    stream = CriteoStream(write(tmp_path / "f", [first, second]), 0.5)
    (train,), (test,) = stream.batches("train", 9), stream.batches("test", 9)
    assert train.labels.tolist() == [1]
    np.testing.assert_allclose(train.dense[0, :5], np.log([4, 1, 1, 1, 8]), rtol=1e-6)
    assert train.ids[0, :5].tolist() == [2**32 - 1, 2**32, 0, 10, 0xAB]
    assert test.labels.tolist() == [0]
    assert test.dense.tolist() == [[0.0] * 13]
    assert test.ids.tolist() == [[2**32] * 26]
    assert (stream.name, stream.num_dense, stream.num_tables) == ("criteo", 13, 26)
    assert stream.bayes() is None


@pytest.mark.parametrize("block_bytes", [1, 50, 1000, 20_000, 1 << 22])
def test_blocks_of_any_size_give_the_same_rows(tmp_path, block_bytes):
    rows = make_rows(101)
    path = write(tmp_path / "f", rows)
    stream = CriteoStream(path, 0.3, block_bytes=block_bytes)
    assert_holds(stream, rows, 71)
    assert_holds(stream, rows, 71)  # a second epoch


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last_end", [True, False])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_line_ends_and_compression_do_not_matter(tmp_path, end, last_end, compress):
    rows = make_rows(40)
    rows[-1][-1] = ""  # the last field of the file may be the missing one
    content = encode(rows, end)
    content = content if last_end else content.removesuffix(end.encode())
    path = write(tmp_path / "named_anyhow.txt", compress(content))
    for block_bytes in (300, 1 << 22):
        assert_holds(CriteoStream(path, block_bytes=block_bytes), rows, 32)


def test_a_gzip_file_may_have_many_members(tmp_path):
    rows = make_rows(30)
    members = b"".join(gzip.compress(encode([row])) for row in rows)
    assert_holds(CriteoStream(write(tmp_path / "f", members)), rows, 24)


@pytest.mark.parametrize(
    ("num_rows", "fraction", "num_test"),
    [(10, 0.2, 2), (11, 0.2, 2), (13, 0.2, 3), (2, 0.5, 1), (3, 0.9, 3), (4, 0.1, 0)],
)
def test_split_sizes(tmp_path, num_rows, fraction, num_test):
    rows = make_rows(num_rows)
    path = write(tmp_path / "f", rows)
    if 0 < num_test < num_rows:
        assert_holds(CriteoStream(path, fraction), rows, num_rows - num_test)
    else:
        with pytest.raises(DataError, match=rf"{num_rows} rows with test_fraction"):
            CriteoStream(path, fraction)


def test_batch_size_does_not_matter(tmp_path):
    stream = CriteoStream(write(tmp_path / "f", make_rows(50)), block_bytes=2000)
    whole = joined(stream, "train", 40)
    for batch_size in (1, 3, 39, 41):
        assert_same(joined(stream, "train", batch_size), whole)


def test_memory_is_bounded_by_the_block(tmp_path):
    content = encode(make_rows(50)) * 400
    path = write(tmp_path / "f", content)
    tracemalloc.start()
    try:
        stream = CriteoStream(path, block_bytes=1 << 16)
        seen = sum(len(batch.labels) for batch in stream.batches("train", 64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == 16_000
    assert len(content) > 3_000_000
    assert peak < 1_000_000


def test_vocabulary_is_that_of_the_train_split(tmp_path):
    rows = make_rows(60)
    stream = CriteoStream(write(tmp_path / "f", rows), block_bytes=3000)
    wanted = Vocabulary.from_batches([expected(rows[:48]).ids], 26)
    for found, ids in zip(stream.vocabulary().tables, wanted.tables, strict=True):
        np.testing.assert_array_equal(found, ids)
    assert stream.vocabulary() is stream.vocabulary()
