"""The Avazu reader on generated files: order, values, splits, errors, cache."""

import datetime
import gzip
import math
import tracemalloc

import numpy as np
import pytest

from fiited_jax.data import AvazuStream, Batch, DataError, Vocabulary
from stream_checks import assert_same, joined

HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,"
    "app_category,device_id,device_ip,device_model,device_type,device_conn_type,"
    "C14,C15,C16,C17,C18,C19,C20,C21"
)
COLUMNS = HEADER.split(",")
HEXADECIMAL = range(5, 14)


def make_rows(count, seed=0):
    """Return rows in random order of hour, with missing and negative values."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        row = [str(number), str(generator.integers(2)), ""]
        row[2] = f"1410{generator.integers(21, 31)}{generator.integers(24):02d}"
        for column in range(3, 24):
            if generator.random() < 0.1:
                row.append("")
            elif column in HEXADECIMAL:
                row.append(f"{generator.integers(1 << 32):08x}")
            else:
                row.append(str(generator.integers(-1, 50)))
        rows.append(row)
    return rows


def in_order(rows):
    return sorted(rows, key=lambda row: row[2])  # stable


def encode(rows, end="\n"):
    return "".join(",".join(row) + end for row in [COLUMNS, *rows]).encode()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else encode(content))
    return path


def expected(rows):
    """Parse rows without polars and numpy arithmetic."""
    ids = []
    for row in rows:
        time = datetime.datetime.strptime(row[2], "%y%m%d%H")
        example = [time.hour, time.weekday()]
        for column in range(3, 24):
            field, base = row[column], 16 if column in HEXADECIMAL else 10
            example.append(int(field, base) % 2**32 if field else 2**32)
        ids.append(example)
    return Batch(
        np.array([int(row[1]) for row in rows], np.float32),
        np.ones((len(rows), 1), np.float32),
        np.array(ids, np.int64),
    )


def cut(rows, fraction=0.2):
    """Cut rows in order of hour into the two splits."""
    days = sorted({row[2][:6] for row in rows})
    if 1 <= fraction * len(days) <= len(days) - 1:
        first = days[-round(fraction * len(days))]
        num_train = sum(row[2][:6] < first for row in rows)
    else:
        num_train = len(rows) - round(fraction * len(rows))
    return rows[:num_train], rows[num_train:]


def assert_holds(stream, rows, fraction=0.2):
    train, test = cut(rows, fraction)
    assert (stream.num_train, stream.num_test) == (len(train), len(test))
    assert_same(joined(stream, "train"), expected(train))
    assert_same(joined(stream, "test"), expected(test))


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


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (1, "2", "column click is '2', must be 0 or 1"),
        (1, "", "column click is '', must be 0 or 1"),
        (2, "", "column hour is '', must be YYMMDDHH"),
        (2, "1410210", "column hour is '1410210', must be YYMMDDHH"),
        (2, "+4102100", r"column hour is '\+4102100'"),
        (2, "14102124", "column hour is '14102124', must be a date and an hour"),
        (2, "14133100", "column hour is '14133100'"),
        (2, "14003100", "column hour is '14003100'"),
        (2, "14100000", "column hour is '14100000'"),
        (2, "01022900", "column hour is '01022900'"),  # 2001 had no 29th of February
        (2, "14103200", "column hour is '14103200'"),
        (3, "x", "column C1 is 'x', must be an integer of 1 to 9 digits or empty"),
        (3, "1.5", "column C1 is '1.5'"),
        (4, " 1", "column banner_pos is ' 1'"),
        (4, "+1", r"column banner_pos is '\+1'"),
        (16, "1" * 10, "column C14 is '1111111111'"),
        (16, "-" + "1" * 10, "column C14 is '-1111111111'"),
        (23, "9" * 30, "column C21 is '9{30}'"),
        (5, "xyz", "column site_id is 'xyz', must be 1 to 8 hexadecimal digits"),
        (13, "123456789", "column device_model is '123456789'"),
        (13, "-1f", "column device_model is '-1f'"),
        (7, '"1f"', "column site_category is '\"1f\"'"),
        (7, "\u00e4", r"column site_category is '\\xc3\\xa4'"),
        (23, "1,2", "has 25 columns, must have 24 separated by commas"),
    ],
)
@pytest.mark.parametrize("block_bytes", [500, 1 << 22])
def test_a_bad_value_is_named(tmp_path, column, value, message, block_bytes):
    rows = make_rows(30)
    rows[16][column] = value
    path = write(tmp_path / "bad.csv", rows)
    with pytest.raises(DataError, match=rf"bad\.csv: line 18,? {message}"):
        AvazuStream(path, block_bytes=block_bytes)


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


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (COLUMNS[:1] + COLUMNS[2:], "lacks click, must be the header id,click"),
        (COLUMNS[:-2], "lacks C20, C21"),
        ([*COLUMNS, "C22"], "has other columns or another order"),
        ([COLUMNS[1], COLUMNS[0], *COLUMNS[2:]], "another order"),
        (["\ufeffid", *COLUMNS[1:]], "lacks id"),
        (["1", "0", *["1"] * 22], "lacks id, click, hour"),
        ([""], "'' and lacks id, click"),
    ],
)
def test_a_bad_header(tmp_path, header, message):
    content = ",".join(header).encode() + encode(make_rows(5)).removeprefix(
        HEADER.encode()
    )
    with pytest.raises(DataError, match=rf"bad\.csv: line 1 is .*{message}"):
        AvazuStream(write(tmp_path / "bad.csv", content))


@pytest.mark.parametrize(
    "content", [b"", encode([]), gzip.compress(b"")], ids=["none", "header", "gzip"]
)
def test_an_empty_file(tmp_path, content):
    with pytest.raises(DataError, match="f: is empty, a header and at least 2 rows"):
        AvazuStream(write(tmp_path / "f", content))


def test_one_row_is_too_few(tmp_path):
    with pytest.raises(DataError, match=r"1 rows .* each split needs at least 1"):
        AvazuStream(write(tmp_path / "f", make_rows(1)), 0.5)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"none: cannot be read \(.*No such file"):
        AvazuStream(tmp_path / "none")
    with pytest.raises(DataError, match="is not a regular file"):
        AvazuStream(tmp_path)
    content = gzip.compress(encode(make_rows(300)))
    for keep in (2, 12, len(content) // 2, len(content) - 1):
        with pytest.raises(DataError, match=r"f\.gz: cannot be read .*whole gzip"):
            AvazuStream(write(tmp_path / "f.gz", content[:keep]))
    garbage = np.random.default_rng(0).bytes(1 << 16)
    with pytest.raises(DataError, match=r"f: line 1 is .*must be the header"):
        AvazuStream(write(tmp_path / "f", garbage))


@pytest.mark.parametrize("sort", [in_order, list], ids=["sorted", "unsorted"])
def test_a_file_that_shrinks_after_opening(tmp_path, sort):
    rows = sort(make_rows(20))
    path = write(tmp_path / "f", rows)
    stream = AvazuStream(path)
    write(path, rows[:18])
    with pytest.raises(DataError, match="ends after 18 rows but had 20"):
        list(stream.batches("test", 8))


@pytest.mark.parametrize("sort", [in_order, list], ids=["sorted", "unsorted"])
def test_a_file_that_goes_bad_after_opening(tmp_path, sort):
    rows = sort(make_rows(20))
    path = write(tmp_path / "f", rows)
    stream = AvazuStream(path, block_bytes=400)
    rows[18][3] = "?"
    write(path, rows)
    with pytest.raises(DataError, match=r"line 20, column C1 is '\?'"):
        list(stream.batches("test", 8))


def test_arguments_are_checked(tmp_path):
    path = write(tmp_path / "f", make_rows(10))
    for fraction in (0, 1, -0.2, math.nan):
        with pytest.raises(ValueError, match=r"test_fraction is .* above 0"):
            AvazuStream(path, fraction)
    with pytest.raises(ValueError, match="block_bytes is 0"):
        AvazuStream(path, block_bytes=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        AvazuStream(path).batches("train", 0)
