"""What the Avazu reader says of files that it cannot use."""

import gzip
import math

import numpy as np
import pytest

from avazu_rows import COLUMNS, HEADER, encode, in_order, make_rows, write
from fiited_jax.data import AvazuStream, DataError


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
