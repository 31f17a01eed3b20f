"""The Avazu reader on generated files: order, values, splits, cache."""

import gzip
import tracemalloc

import numpy as np
import pytest

from avazu_rows import assert_holds, cut, encode, expected, in_order, make_rows, write
from fiited_jax.data import AvazuStream, Vocabulary
from stream_checks import assert_same, joined


@pytest.mark.parametrize(
    ("days", "fraction", "num_train"),
    [
        ([7, 9, 4, 4, 5, 6, 5, 8, 9, 3], 0.2, 48),  # as Kaggle's: 8 days and 2
        ([7, 9, 4, 4, 5, 6, 5, 8, 9, 3], 0.1, 57),
        ([5, 0, 0, 6, 0, 7], 0.34, 11),  # only days with rows count
        ([20, 0, 0, 1], 0.5, 20),
        ([9, 8, 7], 0.2, 19),  # by rows: the test split would have no day
        ([9, 8, 7], 0.8, 5),  # by rows: the train split would have no day
        ([10], 0.2, 8),
    ],
)
def test_the_split_is_at_midnight(tmp_path, days, fraction, num_train):
    rows = make_rows(sum(days))
    for row, day in zip(rows, np.repeat(range(len(days)), days), strict=True):
        row[2] = f"1410{21 + day}{row[2][6:]}"
    for place, order in enumerate((rows, rows[::-1], in_order(rows))):
        path = write(tmp_path / f"f{place}", order)
        stream = AvazuStream(path, fraction, block_bytes=700)
        assert (stream.num_train, stream.num_test) == (num_train, len(rows) - num_train)
        assert_holds(stream, in_order(order), fraction)


def test_values_and_missing_values(tmp_path):
    first = ["7", "1", "14102100", "1005", "", "ffffffff", "", "0", "0000000a", "AB"]
    first += ["1"] * (22 - len(first)) + ["-1", "-0"]
    second = ["", "0", "14102623", *[""] * 21]
    stream = AvazuStream(write(tmp_path / "f", [first, second]), 0.5)
    (train,), (test,) = stream.batches("train", 9), stream.batches("test", 9)
    assert train.labels.tolist() == [1]
    wanted = [0, 1, 1005, 2**32, 2**32 - 1, 2**32, 0, 10, 0xAB]  # a Tuesday
    assert train.ids[0, :9].tolist() == wanted
    assert train.ids[0, -2:].tolist() == [2**32 - 1, 0]
    assert test.labels.tolist() == [0]
    assert test.dense.tolist() == [[1.0]]
    assert test.ids.tolist() == [[23, 6, *[2**32] * 21]]  # a Sunday
    assert (stream.name, stream.num_dense, stream.num_tables) == ("avazu", 1, 23)
    assert stream.bayes() is None


@pytest.mark.parametrize("block_bytes", [1, 200, 3000, 1 << 22])
@pytest.mark.parametrize("sort", [in_order, list], ids=["sorted", "unsorted"])
def test_rows_come_in_order_of_hour_whatever_the_blocks(tmp_path, sort, block_bytes):
    rows = make_rows(101)
    assert rows != in_order(rows)
    path = write(tmp_path / "f", sort(rows))
    stream = AvazuStream(path, 0.3, block_bytes=block_bytes)
    assert_holds(stream, in_order(rows), 0.3)
    assert_holds(stream, in_order(rows), 0.3)  # a second epoch


@pytest.mark.parametrize("block_bytes", [150, 1 << 22])
def test_one_row_out_of_order_is_found_anywhere(tmp_path, block_bytes):
    rows = in_order(make_rows(12))
    for place in range(11):
        if rows[place][2] == rows[place + 1][2]:
            continue
        swapped = [*rows]
        swapped[place : place + 2] = rows[place + 1], rows[place]
        path = write(tmp_path / f"f{place}", swapped)
        assert_holds(AvazuStream(path, 0.5, block_bytes=block_bytes), rows, 0.5)


def test_more_unsorted_rows_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr("fiited_jax.data.avazu._SORTED_BLOCK", 8)
    rows = make_rows(50)
    assert_holds(AvazuStream(write(tmp_path / "f", rows)), in_order(rows))


@pytest.mark.parametrize("sort", [in_order, list], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last_end", [True, False])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_line_ends_and_compression(tmp_path, sort, end, last_end, compress):
    rows = make_rows(40)
    content = encode(sort(rows), end)
    content = content if last_end else content.removesuffix(end.encode())
    path = write(tmp_path / "named_anyhow.txt", compress(content))
    assert_holds(AvazuStream(path, block_bytes=600), in_order(rows))


@pytest.mark.parametrize("sort", [in_order, list], ids=["sorted", "unsorted"])
def test_batch_size_does_not_matter(tmp_path, sort):
    rows = sort(make_rows(50))
    stream = AvazuStream(write(tmp_path / "f", rows), block_bytes=2000)
    size = stream.num_train
    whole = joined(stream, "train", size)
    for batch_size in (1, 3, size - 1, size + 1):
        assert_same(joined(stream, "train", batch_size), whole)


@pytest.mark.parametrize("sort", [in_order, list], ids=["sorted", "unsorted"])
def test_batches_may_be_written_to(tmp_path, sort):
    stream = AvazuStream(write(tmp_path / "f", sort(make_rows(20))))
    before = joined(stream, "train", 16)
    for batch in stream.batches("train", 16):
        for array in batch:
            array[:] = 0
    assert_same(joined(stream, "train", 16), before)


def test_memory_of_a_sorted_file_is_bounded_by_the_block(tmp_path):
    rows = in_order(make_rows(50))
    path = write(tmp_path / "f", encode([row for row in rows for _ in range(400)]))
    tracemalloc.start()
    try:
        stream = AvazuStream(path, block_bytes=1 << 16)
        seen = sum(len(batch.labels) for batch in stream.batches("train", 64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == 400 * len(cut(rows)[0])
    assert path.stat().st_size > 2_000_000
    assert peak < 1_000_000


@pytest.mark.parametrize("sort", [in_order, list], ids=["sorted", "unsorted"])
def test_vocabulary_is_that_of_the_train_split(tmp_path, sort):
    rows = make_rows(60)
    stream = AvazuStream(write(tmp_path / "f", sort(rows)), block_bytes=3000)
    wanted = Vocabulary.from_batches([expected(cut(in_order(rows))[0]).ids], 23)
    for found, ids in zip(stream.vocabulary().tables, wanted.tables, strict=True):
        np.testing.assert_array_equal(found, ids)
    assert stream.vocabulary() is stream.vocabulary()


@pytest.mark.parametrize("sort", [in_order, list], ids=["sorted", "unsorted"])
def test_the_second_stream_reads_nothing_to_open(tmp_path, passes, sort):
    rows = make_rows(30)
    path = write(tmp_path / "f", sort(rows))
    first = AvazuStream(path)
    num_pairs = first.vocabulary().num_pairs
    assert len(passes) == 2
    second = AvazuStream(path)
    assert second.vocabulary().num_pairs == num_pairs
    assert len(passes) == 2
    assert_holds(second, in_order(rows))
    AvazuStream(path, 0.5)
    write(path, in_order(rows)[:20])
    assert_holds(AvazuStream(path), in_order(rows)[:20])


@pytest.mark.parametrize(
    "content", [b"", b"30 1", b"30 1 x", b"0 1 6", b"30 1 -1", b"\xff"]
)
def test_a_damaged_cache_is_ignored(tmp_path, content):
    rows = make_rows(30)
    path = write(tmp_path / "f", rows)
    AvazuStream(path).vocabulary()
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(content)
    stream = AvazuStream(path)
    assert_holds(stream, in_order(rows))
    assert stream.vocabulary().num_pairs > 0


def test_leap_days_and_leading_zeros_are_allowed(tmp_path):
    rows = make_rows(4)
    for row, hour in zip(
        rows, ["00022923", "04022900", "14123123", "99010100"], strict=True
    ):
        row[2] = hour
    rows[1][3] = "0" * 20 + "7"
    stream = AvazuStream(write(tmp_path / "f", rows), 0.25)
    train = joined(stream, "train", 3)
    assert train.ids[:, :2].tolist() == [[23, 1], [0, 6], [23, 2]]
    assert train.ids[1, 2] == 7
