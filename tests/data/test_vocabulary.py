"""The vocabulary against a Python dict, on disk, and in bounded memory."""

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fiited_jax.data import DataError, Vocabulary
from fiited_jax.data import vocabulary as module

ID_ARRAYS = st.lists(
    npst.arrays(
        np.int64,
        st.tuples(st.integers(0, 20), st.just(3)),
        elements=st.one_of(
            st.integers(-3, 12), st.sampled_from([1 << 32, 2**63 - 1, -(2**63)])
        ),
    ),
    max_size=6,
)


def reference(arrays: list[np.ndarray], num_tables: int) -> dict[tuple[int, int], int]:
    """Number the pairs with a set, a sort and a dict."""
    pairs = {
        (table, int(ids[row, table]))
        for ids in arrays
        for row in range(len(ids))
        for table in range(num_tables)
        if ids[row, table] >= 0
    }
    return {pair: number for number, pair in enumerate(sorted(pairs))}


@given(ID_ARRAYS, ID_ARRAYS)
@settings(max_examples=100, deadline=None)
def test_rows_agree_with_a_dict(known, asked):
    numbers = reference(known, 3)
    vocabulary = Vocabulary.from_batches(known, 3)
    assert vocabulary.num_pairs == len(numbers)
    for ids in [*known, *asked]:
        rows = vocabulary.rows(ids)
        expected = [
            [numbers.get((table, int(row[table])), -1) for table in range(3)]
            for row in ids
        ]
        assert rows.dtype == np.int32
        assert rows.shape == ids.shape
        assert rows.tolist() == expected


def test_merging_in_many_steps_changes_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    arrays = [generator.integers(-1, 3000, (size % 70, 4)) for size in range(200)]
    once = Vocabulary.from_batches(arrays, 4)
    monkeypatch.setattr(module, "_MIN_BUFFER_ROWS", 10)
    merges = []
    merge = module._merge
    monkeypatch.setattr(
        module, "_merge", lambda *args: merges.append(len(args[1])) or merge(*args)
    )
    stepwise = Vocabulary.from_batches(iter(arrays), 4)
    assert sum(merges) == len(arrays)
    assert len(merges) > 3
    for left, right in zip(once.tables, stepwise.tables, strict=True):
        np.testing.assert_array_equal(left, right)
    # No merge handles fewer new rows than known ids, so the work is not quadratic.
    assert len(merges) <= 2 + sum(map(len, arrays)) // 10


def test_memory_is_bounded_by_the_vocabulary(monkeypatch):
    monkeypatch.setattr(module, "_MIN_BUFFER_ROWS", 1000)
    rows_each, count = 1000, 200
    arrays = (
        np.random.default_rng(number).integers(0, 50, (rows_each, 8))
        for number in range(count)
    )
    tracemalloc.start()
    try:
        vocabulary = Vocabulary.from_batches(arrays, 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert vocabulary.num_pairs == 8 * 50
    assert peak < rows_each * count * 8 * 8 / 20


def test_tables_hold_sorted_unique_ids_that_cannot_change():
    vocabulary = Vocabulary.from_batches([np.array([[5, -1], [2, 9], [5, 9]])], 2)
    assert vocabulary.num_tables == 2
    assert [ids.tolist() for ids in vocabulary.tables] == [[2, 5], [9]]
    assert all(ids.dtype == np.int64 for ids in vocabulary.tables)
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.tables[0][0] = 1


def test_constructor_does_not_share_memory():
    ids = np.array([1, 2])
    vocabulary = Vocabulary([ids])
    ids[0] = 0
    assert vocabulary.tables[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 1], "must hold sorted, unique ids"),
        ([2, 1], "must hold sorted, unique ids"),
        ([-1, 1], "must hold .* not negative"),
        ([[1], [2]], r"has shape \(2, 1\) .* must be int64\[N\]"),
        ([0.5], r"has .* dtype float64, must be int64\[N\]"),
    ],
)
def test_constructor_refuses_other_arrays(ids, message):
    with pytest.raises(ValueError, match=rf"tables\[1\] {message}"):
        Vocabulary([np.arange(3), np.array(ids)])


def test_more_pairs_than_int32_are_refused(monkeypatch):
    monkeypatch.setattr(module, "_MAX_PAIRS", 3)
    Vocabulary([np.arange(3)])
    with pytest.raises(ValueError, match="hold 4 pairs, at most 3"):
        Vocabulary([np.arange(3), np.arange(1)])


def test_arguments_are_checked():
    vocabulary = Vocabulary([np.arange(3), np.arange(2)])
    for ids in (np.zeros(2, np.int64), np.zeros((2, 3), np.int64), np.zeros((2, 2))):
        with pytest.raises(ValueError, match=r"ids has shape .* must be int64\[B, 2\]"):
            vocabulary.rows(ids)
        with pytest.raises(ValueError, match="ids has shape"):
            Vocabulary.from_batches([ids], 2)
    with pytest.raises(ValueError, match="num_tables is 0"):
        Vocabulary.from_batches([], 0)


@pytest.mark.parametrize(
    "tables", [[[3, 1 << 40], [], [0]], [[], []], [[7]], []], ids=str
)
def test_round_trip(tmp_path, tables):
    saved = Vocabulary([np.array(ids, np.int64) for ids in tables])
    saved.save(tmp_path / "pairs.npz")
    loaded = Vocabulary.load(tmp_path / "pairs.npz")
    assert [ids.tolist() for ids in loaded.tables] == tables
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.npz"]


def test_a_failing_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "pairs.npz"
    Vocabulary([np.array([1])]).save(path)

    def fails(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(OSError, match="disk full"):
        Vocabulary([np.array([2])]).save(path)
    assert Vocabulary.load(path).tables[0].tolist() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.npz"]


def saved_bytes(save, *args, **arrays) -> bytes:
    file = io.BytesIO()
    save(file, *args, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"not an archive",
        lambda whole: b"PK\x03\x04",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole.replace(b"\x07\x00\x00\x00", b"\x08\x00\x00\x00", 1),
        lambda whole: saved_bytes(np.save, np.arange(3)),
        lambda whole: saved_bytes(np.savez, x=np.arange(3)),
        lambda whole: saved_bytes(np.savez, ids=np.array([2, 1]), offsets=[0, 2]),
        lambda whole: saved_bytes(np.savez, ids=np.array([1, 2]), offsets=[0, 1]),
        lambda whole: saved_bytes(np.savez, ids=np.array([0.5]), offsets=[0, 1]),
    ],
    ids=[
        "empty",
        "text",
        "magic",
        "half",
        "flipped",
        "array",
        "other",
        "unsorted",
        "short",
        "float",
    ],
)
def test_load_names_a_file_that_is_no_vocabulary(tmp_path, damage):
    path = tmp_path / "bad.npz"
    Vocabulary([np.arange(1000)]).save(path)
    whole = path.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"bad\.npz: not a vocabulary"):
        Vocabulary.load(path)


def test_load_names_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz: not a vocabulary"):
        Vocabulary.load(tmp_path / "none.npz")
