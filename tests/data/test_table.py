"""The reader of any table on generated files: values, order, types, cache."""

import datetime
import hashlib
import io
import math

import numpy as np
import polars as pl
import pytest

from fiited_jax.data import TableStream, Vocabulary, text_id
from stream_checks import assert_same, joined, whole
from table_rows import (
    ENCODERS,
    SCHEMA,
    as_csv,
    as_parquet,
    assert_holds,
    expected,
    make_rows,
    open_table,
)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("block", [3, 1 << 14])
def test_values_are_the_same_in_every_kind_of_file(tmp_path, kind, block, monkeypatch):
    monkeypatch.setattr("fiited_jax.data.table._BLOCK", block)
    monkeypatch.setattr("fiited_jax.data.table_file._BLOCK_BYTES", 9 * block)
    rows = make_rows()
    stream = open_table(tmp_path, ENCODERS[kind](rows))
    assert (stream.name, stream.num_dense, stream.num_tables) == ("table", 2, 2)
    assert (stream.num_train, stream.num_test) == (40, 10)
    assert stream.bayes() is None
    assert_holds(stream, rows)
    assert_holds(stream, rows)  # a second epoch
    assert_same(joined(stream, "train", 39), joined(stream, "train", 41))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_come_in_order_and_equal_ones_as_in_the_file(tmp_path, kind):
    rows = make_rows()
    schema = SCHEMA + 'order_by = "hour"\n'
    stream = open_table(tmp_path, ENCODERS[kind](rows), schema, 0.5)
    assert stream.num_test == 25
    assert_holds(stream, sorted(rows, key=lambda row: row["hour"]))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([9, 10, -1], [2, 0, 1]),
        ([0.5, 10.0, -1e9], [2, 0, 1]),
        (["b", "a", "10"], [2, 1, 0]),
        (["9", "10", "-1"], [2, 0, 1]),
        (["1e1", "9.5", "-2"], [2, 1, 0]),
        ([str(2**60 + 1), str(2**60), "3"], [2, 1, 0]),
        (["nan", "7", "10"], [2, 1, 0]),  # not all are numbers
        ([datetime.datetime(2020, 1, 2), datetime.datetime(2020, 1, 1, 5)], [1, 0]),
        ([datetime.date(2020, 1, 2), datetime.date(2019, 1, 1)], [1, 0]),
        (["2020-01-02 10:00", "2020-01-02 09:00", "2019"], [2, 1, 0]),
    ],
)
def test_what_rows_may_be_ordered_by(tmp_path, values, wanted):
    count = len(values)
    rows = [{"y": 0, "item": place, "at": at} for place, at in enumerate(values * 20)]
    schema = 'label = "y"\nids = ["item"]\norder_by = "at"'
    found = whole(open_table(tmp_path, as_parquet(rows), schema)).ids[:, 0]
    assert found.tolist() == [k + count * n for k in wanted for n in range(20)]


def test_a_label_from_a_least_value_and_no_dense_columns(tmp_path):
    schema = 'label = "stars"\nlabel_min = 4\nids = ["user"]'
    stream = open_table(
        tmp_path, "user,stars\n1,4\n2,3.9\n3,-inf\n4,5\n5,1e9\n", schema
    )
    found = whole(stream)
    assert found.labels.tolist() == [1, 0, 0, 1, 1]
    assert found.dense.tolist() == [[1]] * 5
    assert found.ids.tolist() == [[1], [2], [3], [4], [5]]


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([True, False, True]),
        pl.Series([1.0, 0.0, 1.0]),
        pl.Series([1, 0, 1], dtype=pl.UInt8),
        pl.Series(["1", "0", "1.0"]),
    ],
)
def test_labels_of_any_type(tmp_path, values):
    content = io.BytesIO()
    pl.DataFrame({"y": values, "user": [1, 2, 3]}).write_parquet(content)
    stream = open_table(tmp_path, content.getvalue(), 'label = "y"\nids = ["user"]')
    assert whole(stream).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pl.Series([5, -5, None]), [5, text_id("-5"), -1]),
        (pl.Series([5, 2**63, None], dtype=pl.UInt64), [5, text_id(str(2**63)), -1]),
        (pl.Series(["5", "-1", ""]), [5, text_id("-1"), -1]),
        (pl.Series(["5", "+5", " 5"]), [5, text_id("+5"), text_id(" 5")]),
        (pl.Series(["5", "5.0", "0"]), [5, text_id("5.0"), 0]),
        (pl.Series(["a", "5", None], dtype=pl.Categorical), [text_id("a"), 5, -1]),
        (pl.Series(["a", "b", "a"], dtype=pl.Enum(["b", "a"])), None),
        (pl.Series([None, None, None], dtype=pl.String), [-1, -1, -1]),
    ],
)
def test_ids_of_any_type(tmp_path, values, wanted):
    content = io.BytesIO()
    pl.DataFrame({"y": [0, 1, 0], "user": values}).write_parquet(content)
    stream = open_table(tmp_path, content.getvalue(), 'label = "y"\nids = ["user"]')
    wanted = wanted or [text_id("a"), text_id("b"), text_id("a")]
    assert whole(stream).ids[:, 0].tolist() == wanted


def test_the_id_of_a_text_never_changes():
    digest = hashlib.blake2b("\u00e4".encode(), digest_size=8).digest()
    assert text_id("\u00e4") == int.from_bytes(digest, "little") // 2
    assert text_id("user_7") == 5714019741610155659


def test_numbers_of_any_type(tmp_path):
    schema = 'label = "y"\nids = ["user"]\ndense = ["a", "b", "c"]'
    content = io.BytesIO()
    pl.DataFrame(
        {
            "y": [0, 1, 0],
            "user": [1, 2, 3],
            "a": [True, False, None],
            "b": [math.nan, -1.0, 1e300],
            "c": ["", "-0.5", "1e2"],
        }
    ).write_parquet(content)
    found = whole(open_table(tmp_path, content.getvalue(), schema)).dense
    wanted = [
        [math.log(2), 0, 0],
        [0, -math.log(2), -math.log(1.5)],
        [0, 300 * math.log(10), math.log(101)],
    ]
    np.testing.assert_allclose(found, wanted, rtol=3e-7)


def test_batches_may_be_written_to(tmp_path):
    stream = open_table(tmp_path, as_csv(make_rows()))
    before = whole(stream)
    for batch in stream.batches("train", 40):
        for array in batch:
            array[:] = 0
    assert_same(whole(stream), before)


def test_the_vocabulary_is_kept_while_file_and_schema_stay(tmp_path, monkeypatch):
    rows = make_rows()
    made = []
    make = Vocabulary.from_batches

    def counting(batches, num_tables):
        made.append(num_tables)
        return make(batches, num_tables)

    monkeypatch.setattr(Vocabulary, "from_batches", counting)
    content = as_csv(rows)
    first = open_table(tmp_path, content).vocabulary()
    wanted = make([expected(rows[:40]).ids], 2)
    for found, ids in zip(first.tables, wanted.tables, strict=True):
        np.testing.assert_array_equal(found, ids)
    TableStream(tmp_path / "table", tmp_path / "schema.toml").vocabulary()
    assert len(made) == 1
    open_table(tmp_path, content, SCHEMA.replace('["user", "item"]', '["user"]'))
    TableStream(tmp_path / "table", tmp_path / "schema.toml").vocabulary()
    assert made == [2, 1]


def test_a_column_may_be_dense_and_an_id_and_the_order(tmp_path):
    schema = 'label = "y"\nids = ["u"]\ndense = ["u"]\norder_by = "u"'
    found = whole(open_table(tmp_path, "y,u\n1,2\n0,0\n", schema, 0.5))
    assert found.ids.tolist() == [[0], [2]]
    np.testing.assert_allclose(found.dense, [[0], [math.log(3)]], rtol=3e-7)
