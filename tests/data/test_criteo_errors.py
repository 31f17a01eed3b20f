"""What the Criteo reader says of files that it cannot use."""

import gzip
import math

import numpy as np
import pytest

from criteo_rows import (
    assert_holds,
    encode,
    make_rows,
    read_all,
    write,
)
from fiited_jax.data import CriteoStream, DataError
from fiited_jax.data import lines as module


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, "2", "column label is '2', must be 0 or 1"),
        (0, "", "column label is '', must be 0 or 1"),
        (0, "01", "column label is '01'"),
        (0, "x", "column label is 'x'"),
        (1, "1.5", "column I1 is '1.5', must be an integer"),
        (13, "abc", "column I13 is 'abc', must be an integer"),
        (5, "1 2", "column I5 is '1 2'"),
        (5, " 2", "column I5 is ' 2'"),
        (5, "9" * 19, "column I5 is '9999999999999999999', .*1 to 18 digits"),
        (5, "-" + "1" * 19, "column I5 is '-1111111111111111111'"),
        (5, "9" * 30, "column I5 is '9{30}'"),
        (14, "xyz", "column C1 is 'xyz', must be 1 to 8 hexadecimal digits or empty"),
        (39, "123456789", "column C26 is '123456789'"),
        (39, "000000001", "column C26 is '000000001'"),
        (20, "-1f", "column C7 is '-1f'"),
        (20, "+1f", r"column C7 is '\+1f'"),
        (20, "0x1f", "column C7 is '0x1f'"),
        (20, " 1f", "column C7 is ' 1f'"),
        (20, "1f\r", r"column C7 is '1f\\r'"),
        (20, '"1f"', "column C7 is '\"1f\"'"),
        (20, "\u00e4", r"column C7 is '\\xc3\\xa4'"),
        (20, "z" * 900, "column C7 is 'z{40}',"),
    ],
)
@pytest.mark.parametrize("block_bytes", [500, 1 << 22])
def test_a_bad_value_is_named(tmp_path, column, value, message, block_bytes):
    rows = make_rows(30)
    rows[16][column] = value
    path = write(tmp_path / "bad.tsv", rows)
    with pytest.raises(DataError, match=rf"bad\.tsv: line 17, {message}"):
        read_all(path, block_bytes)


def test_the_line_is_counted_in_the_test_split_too(tmp_path):
    rows = make_rows(30)
    rows[28][3] = "?"
    stream = CriteoStream(write(tmp_path / "bad.tsv", rows), block_bytes=500)
    list(stream.batches("train", 8))
    with pytest.raises(DataError, match=r"line 29, column I3 is '\?'"):
        list(stream.batches("test", 8))


def test_plus_signs_of_integers_are_allowed(tmp_path):
    rows = make_rows(10)
    rows[3][2] = "+5"
    assert_holds(CriteoStream(write(tmp_path / "f", rows)), rows, 8)


@pytest.mark.parametrize("width", [0, 1, 39, 41])
@pytest.mark.parametrize("row", [0, 16, 29])
@pytest.mark.parametrize("block_bytes", [500, 1 << 22])
def test_a_wrong_number_of_columns_is_named(tmp_path, width, row, block_bytes):
    rows = make_rows(30)
    rows[row] = (rows[row] + ["1"])[:width]
    path = write(tmp_path / "bad.tsv", rows)
    message = rf"bad\.tsv: line {row + 1} has {max(width, 1)} columns, must have 40"
    with pytest.raises(DataError, match=message):
        read_all(path, block_bytes)


def test_missing_and_spare_columns_do_not_make_up_for_each_other(tmp_path):
    rows = make_rows(30)
    rows[10] = [*rows[10], "1"]
    rows[11] = rows[11][:-1]
    with pytest.raises(DataError, match="line 11 has 41 columns"):
        CriteoStream(write(tmp_path / "f", rows))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"none\.tsv: cannot be read \(.*No such file"):
        CriteoStream(tmp_path / "none.tsv")


def test_a_folder(tmp_path):
    with pytest.raises(DataError, match="is not a regular file"):
        CriteoStream(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "f", make_rows(5))

    def refuse(*args):
        raise PermissionError("Permission denied")

    monkeypatch.setattr(module, "open_text", refuse)
    with pytest.raises(DataError, match=r"f: cannot be read \(Permission denied\)"):
        CriteoStream(path)


@pytest.mark.parametrize("content", [b"", gzip.compress(b"")], ids=["plain", "gzip"])
def test_an_empty_file(tmp_path, content):
    with pytest.raises(DataError, match="f: is empty, at least 2 rows"):
        CriteoStream(write(tmp_path / "f", content))


def test_one_row_is_too_few(tmp_path):
    with pytest.raises(DataError, match=r"1 rows .* each split needs at least 1"):
        CriteoStream(write(tmp_path / "f", make_rows(1)), 0.5)


@pytest.mark.parametrize("keep", [2, 12, 0.5, -9, -1])
def test_a_truncated_gzip_file(tmp_path, keep):
    content = gzip.compress(encode(make_rows(300)))
    keep = int(len(content) * keep) if isinstance(keep, float) else keep
    with pytest.raises(DataError, match=r"f\.gz: cannot be read .*whole gzip"):
        CriteoStream(write(tmp_path / "f.gz", content[:keep]))


def test_a_damaged_gzip_file(tmp_path):
    content = bytearray(gzip.compress(encode(make_rows(300))))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"f\.gz: "):
        CriteoStream(write(tmp_path / "f.gz", bytes(content)))


def test_binary_garbage(tmp_path):
    garbage = np.random.default_rng(0).bytes(1 << 16)
    with pytest.raises(DataError, match=r"f: line 1 has .* columns, must have 40"):
        CriteoStream(write(tmp_path / "f", garbage))
    with pytest.raises(DataError, match="f: a line longer than 65536 bytes"):
        CriteoStream(write(tmp_path / "f", bytes(1 << 20)), block_bytes=1000)


def test_text_that_is_not_utf8(tmp_path):
    content = encode(make_rows(5)).replace(b"\n", b"\xff\n", 1)
    with pytest.raises(DataError, match=r"line 1, column C26 is '.*\\xff'"):
        CriteoStream(write(tmp_path / "f", content))


def test_a_file_that_shrinks_after_opening(tmp_path):
    rows = make_rows(20)
    path = write(tmp_path / "f", rows)
    stream = CriteoStream(path)
    write(path, rows[:18])
    with pytest.raises(DataError, match="ends after 18 rows but had 20"):
        list(stream.batches("test", 8))


def test_arguments_are_checked(tmp_path):
    path = write(tmp_path / "f", make_rows(10))
    for fraction in (0, 1, -0.2, 1.5, math.nan):
        with pytest.raises(
            ValueError, match=r"test_fraction is .* above 0 and below 1"
        ):
            CriteoStream(path, fraction)
    with pytest.raises(ValueError, match="block_bytes is 0"):
        CriteoStream(path, block_bytes=0)
    stream = CriteoStream(path)
    with pytest.raises(ValueError, match="split is 'all'"):
        stream.batches("all", 8)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="batch_size is 0"):
        stream.batches("train", 0)
