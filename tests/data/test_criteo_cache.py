"""The cache of row count and vocabulary."""

import os
from pathlib import Path

import pytest

from criteo_rows import assert_holds, make_rows, write
from fiited_jax.data import CriteoStream


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("FIITED_CACHE_DIR", str(folder))
    return folder


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
