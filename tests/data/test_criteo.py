"""The Criteo reader on generated files: values, splits, blocks, errors and cache."""

import gzip
import math
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fiited_jax.data import Batch, CriteoStream, DataError, Vocabulary
from fiited_jax.data import criteo as module

Row = list[str]


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("FIITED_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def passes(monkeypatch):
    """Collect the paths of the passes over files."""
    opened = []
    blocks = module._blocks

    def counting(path, block_bytes):
        opened.append(path)
        return blocks(path, block_bytes)

    monkeypatch.setattr(module, "_blocks", counting)
    return opened


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Return rows with missing values, negative integers and 1 to 8 hex digits."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        dense = [
            "" if missing else str(value)
            for missing, value in zip(
                generator.random(13) < 0.2,
                generator.integers(-3, 100, 13) ** 3,
                strict=True,
            )
        ]
        tables = [
            "" if missing else f"{value:x}"
            for missing, value in zip(
                generator.random(26) < 0.2,
                generator.integers(0, 1 << 32, 26) >> generator.integers(0, 30, 26),
                strict=True,
            )
        ]
        rows.append([str(generator.integers(2)), *dense, *tables])
    return rows


def encode(rows: list[Row], end: str = "\n") -> bytes:
    return "".join("\t".join(row) + end for row in rows).encode()


def write(path: Path, content: bytes | list[Row]) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else encode(content))
    return path


def expected(rows: list[Row]) -> Batch:
    """Parse rows without polars and numpy arithmetic."""
    dense = [
        [math.log(1 + max(int(field), 0)) if field else 0.0 for field in row[1:14]]
        for row in rows
    ]
    ids = [[int(field, 16) if field else 1 << 32 for field in row[14:]] for row in rows]
    labels = np.array([int(row[0]) for row in rows], np.float32)
    return Batch(labels, np.array(dense, np.float32), np.array(ids, np.int64))


def joined(stream: CriteoStream, split, batch_size: int = 7) -> Batch:
    batches = list(stream.batches(split, batch_size))
    assert all(len(batch.labels) == batch_size for batch in batches[:-1])
    return Batch(*map(np.concatenate, zip(*batches, strict=True)))


def read_all(path: Path, block_bytes: int):
    stream = CriteoStream(path, block_bytes=block_bytes)
    for split in ("train", "test"):
        list(stream.batches(split, 8))


def assert_same(left: Batch, right: Batch):
    for one, other in zip(left, right, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def assert_holds(stream: CriteoStream, rows: list[Row], num_train: int):
    assert (stream.num_train, stream.num_test) == (num_train, len(rows) - num_train)
    for split, part in (("train", rows[:num_train]), ("test", rows[num_train:])):
        found, wanted = joined(stream, split), expected(part)
        assert found.labels.dtype == found.dense.dtype == np.float32
        assert_same(Batch(found.labels, wanted.dense, found.ids), wanted)
        np.testing.assert_allclose(found.dense, wanted.dense, rtol=3e-7)


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


# Errors -------------------------------------------------------------------------------


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

    monkeypatch.setattr(module, "_open", refuse)
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


# Cache --------------------------------------------------------------------------------


def test_the_second_stream_reads_nothing_to_know_rows_and_vocabulary(
    tmp_path, cache_dir, passes
):
    path = write(tmp_path / "f", make_rows(30))
    first = CriteoStream(path)
    assert len(passes) == 1
    first.vocabulary()
    first.vocabulary()
    assert len(passes) == 2
    second = CriteoStream(path)
    assert second.num_train == first.num_train
    assert second.vocabulary().num_pairs == first.vocabulary().num_pairs
    assert len(passes) == 2
    assert len(list(cache_dir.iterdir())) == 2


def test_cache_dir_overrides_the_environment(tmp_path, cache_dir):
    path = write(tmp_path / "f", make_rows(30))
    CriteoStream(path, cache_dir=tmp_path / "mine" / "deep")
    assert len(list((tmp_path / "mine" / "deep").iterdir())) == 1
    assert not cache_dir.exists()


def test_the_home_folder_is_the_default(tmp_path, monkeypatch):
    monkeypatch.delenv("FIITED_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    CriteoStream(write(tmp_path / "f", make_rows(30)))
    assert len(list((tmp_path / ".cache" / "fiited_jax").iterdir())) == 1


def test_no_home_folder_is_no_cache(tmp_path, monkeypatch, passes):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FIITED_CACHE_DIR")
    monkeypatch.setattr(Path, "home", homeless)
    path = write(tmp_path / "f", make_rows(30))
    for _ in range(2):
        CriteoStream(path).vocabulary()
    assert len(passes) == 4


def test_a_changed_file_or_fraction_is_counted_anew(tmp_path, passes):
    rows = make_rows(30)
    path = write(tmp_path / "f", rows)
    CriteoStream(path)
    os.utime(path, ns=(1, 1))
    CriteoStream(path)
    assert len(passes) == 2
    stream = CriteoStream(path, 0.5)
    assert len(passes) == 3
    write(path, rows[:20])
    os.utime(path, ns=(1, 1))
    assert CriteoStream(path, 0.5).num_train == 10
    assert stream.num_train == 15


@pytest.mark.parametrize(
    "content", [b"", b"\xff{", b"-3", b"0", b"12.5", b"PK\x03\x04"]
)
def test_a_damaged_cache_is_ignored_and_replaced(tmp_path, cache_dir, passes, content):
    rows = make_rows(30)
    path = write(tmp_path / "f", rows)
    num_pairs = CriteoStream(path).vocabulary().num_pairs
    for file in cache_dir.iterdir():
        file.write_bytes(content)
    stream = CriteoStream(path)
    assert_holds(stream, rows, 24)
    assert stream.vocabulary().num_pairs == num_pairs
    passes.clear()
    assert CriteoStream(path).vocabulary().num_pairs == num_pairs
    assert passes == []


def test_an_unwritable_cache_is_ignored(tmp_path):
    rows = make_rows(30)
    path = write(tmp_path / "f", rows)
    blocked = write(tmp_path / "a_file", b"")
    stream = CriteoStream(path, cache_dir=blocked)
    assert_holds(stream, rows, 24)
    assert stream.vocabulary().num_pairs > 0
    assert blocked.read_bytes() == b""
