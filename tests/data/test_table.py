"""The reader of any table on generated files: values, order, types, errors, cache."""

import csv
import datetime
import gzip
import hashlib
import io
import math

import numpy as np
import polars as pl
import pytest

from fiited_jax.data import Batch, DataError, TableStream, Vocabulary, text_id
from stream_checks import assert_same, joined, whole

SCHEMA = """
label = "clicked"
dense = ["price", "age"]
ids = ["user", "item"]
"""


def make_rows(count=50, seed=0):
    """Return rows with missing values, quotes, commas, large and negative ids."""
    generator = np.random.default_rng(seed)
    items = [
        "a",
        "7",
        "07",
        "-3",
        "9" * 19,
        "x, \u00e4",
        'say "no"',
        "two\nlines",
        None,
    ]
    return [
        {
            "unused": f'"{number},"',
            "user": number % 7 if number % 5 else None,
            "price": float(generator.normal() * 1000) if number % 6 else None,
            "clicked": int(generator.integers(2)),
            "item": items[generator.integers(len(items))],
            "age": int(generator.integers(-5, 90)),
            "hour": int(generator.integers(20)),
        }
        for number in range(count)
    ]


def as_csv(rows, end="\n"):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows):
    content = io.BytesIO()
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(content)
    return content.getvalue()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def open_table(folder, content, schema=SCHEMA, *args, **fields):
    path = write(folder / "table", content)
    return TableStream(path, write(folder / "schema.toml", schema), *args, **fields)


def expected_id(value):
    if value is None:
        return -1
    text = str(value)
    if text.isdecimal() and str(int(text)) == text and int(text) < 2**63:
        return int(text)
    return text_id(text)


def expected(rows):
    """Make the examples without polars and numpy arithmetic."""
    dense = [
        [
            math.copysign(math.log1p(abs(row[name] or 0)), row[name] or 0)
            for name in ("price", "age")
        ]
        for row in rows
    ]
    ids = [[expected_id(row[name]) for name in ("user", "item")] for row in rows]
    labels = [row["clicked"] for row in rows]
    return Batch(
        np.array(labels, np.float32),
        np.array(dense, np.float32),
        np.array(ids, np.int64),
    )


def assert_holds(stream, rows):
    found, wanted = whole(stream), expected(rows)
    assert found.dense.dtype == np.float32
    assert_same(Batch(found.labels, wanted.dense, found.ids), wanted)
    np.testing.assert_allclose(found.dense, wanted.dense, rtol=3e-7)


ENCODERS = {
    "csv": as_csv,
    "windows": lambda rows: as_csv(rows, "\r\n"),
    "no last end": lambda rows: as_csv(rows)[:-1],
    "mark": lambda rows: b"\xef\xbb\xbf" + as_csv(rows),
    "csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "parquet": as_parquet,
}


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


BAD_VALUES = {
    "label 2": ("clicked", "2", "is '2', must be 0 or 1"),
    "label 0.5": ("clicked", "0.5", r"is '0\.5', must be 0 or 1"),
    "label true": ("clicked", "true", "is 'true', must be 0 or 1"),
    "no label": ("clicked", "", "is missing, must be 0 or 1"),
    "text": ("price", "cheap", "is 'cheap', must be a finite number or missing"),
    "spaces": ("price", " 1", "is ' 1', must be a finite number"),
    "infinite": ("age", "inf", "is 'inf', must be a finite number"),
    "no order": ("hour", "", "is missing, must be a number, a time or text"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_bad_value_is_named(tmp_path, name):
    column, value, message = BAD_VALUES[name]
    rows = make_rows()
    rows[16][column] = value
    message = rf"table: row 17, column '{column}' {message}"
    with pytest.raises(DataError, match=message):
        open_table(tmp_path, as_csv(rows), SCHEMA + 'order_by = "hour"')


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("y", [1, 2, None], "row 2, column 'y' is 2, must be 0 or 1"),
        ("y", [1, 0, None], "row 3, column 'y' is missing, must be 0 or 1"),
        ("y", [1.0, 0.0, math.nan], "row 3, column 'y' is nan, must be 0 or 1"),
        ("y", [[1], [0], [1]], r"column 'y' is of type List\(Int64\), must be numbers"),
        ("a", [1.0, math.inf, 0.0], "row 2, column 'a' is inf, must be a finite"),
        (
            "a",
            [datetime.date(2020, 1, 1)] * 3,
            "column 'a' is of type Date, must be numbers, each a finite number or",
        ),
        ("user", [1.0, 2.0, 3.0], "column 'user' is of type Float64, must be integers"),
        ("user", [True, False, True], "column 'user' is of type Boolean, must be"),
        ("user", [b"1", b"2", b"3"], "column 'user' is of type Binary, must be"),
        ("at", [1.0, math.nan, 2.0], "row 2, column 'at' is nan, must be a number"),
        (
            "at",
            [{"x": 1}] * 3,
            "column 'at' is of type Struct.*, must be numbers, times",
        ),
    ],
)
def test_a_bad_column_of_parquet_is_named(tmp_path, column, values, message):
    table = {"y": [0, 1, 0], "a": [1.0, 2.0, 3.0], "user": [1, 2, 3], "at": [1, 2, 3]}
    content = io.BytesIO()
    pl.DataFrame(table | {column: values}).write_parquet(content)
    schema = 'label = "y"\ndense = ["a"]\nids = ["user"]\norder_by = "at"'
    with pytest.raises(DataError, match=f"table: {message}"):
        open_table(tmp_path, content.getvalue(), schema)


def test_with_a_least_value_a_label_is_a_number(tmp_path):
    schema = 'label = "y"\nlabel_min = 4\nids = ["user"]'
    for value, shown in (("x", "'x'"), ("", "missing"), ("nan", "'nan'")):
        with pytest.raises(DataError, match=f"row 2, .* is {shown}, must be a number"):
            open_table(tmp_path, f"y,user\n1,1\n{value},2\n", schema, 0.5)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_that_is_not_there(tmp_path, kind):
    schema = SCHEMA.replace('"age"', '"aeg"')
    message = r"table: has no column 'aeg', which .*schema\.toml names; must be one of "
    with pytest.raises(DataError, match=message + "'unused', 'user', 'price'"):
        open_table(tmp_path, ENCODERS[kind](make_rows()), schema)
    wide = {f"c{number}": 1 for number in range(99)}
    with pytest.raises(DataError, match=r"'c28', 'c29', \.\.\.$"):
        open_table(tmp_path, ENCODERS[kind]([wide]), schema)


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("block_bytes", [5, 64, 1 << 22])
@pytest.mark.parametrize("row", [1, 17, 50])
@pytest.mark.parametrize(
    ("line", "width"), [(b"1,2,3,4,5,6", 6), (b'1,2,"3,3",4,5,6,7,8', 8), (b"", 1)]
)
def test_a_row_of_another_width_is_named(
    tmp_path, end, block_bytes, row, line, width, monkeypatch
):
    monkeypatch.setattr("fiited_jax.data.table_file._BLOCK_BYTES", block_bytes)
    rows = [{**each, "item": "a,b\nc"} for each in make_rows()]
    lines = as_csv(rows).removesuffix(b"\n").split(b"\n")
    lines[2 * row - 1 : 2 * row + 1] = [line]  # every row has two lines
    content = b"\n".join(lines) + (end if line else b"\n")
    message = rf"table: row {row} has {width} columns, must have 7 separated by commas"
    with pytest.raises(DataError, match=message):
        open_table(tmp_path, content)


BAD_FILES = {
    "nothing": (b"", "is empty, a header and 2 rows"),
    "header": (b"clicked,price,age,user,item\n", "is empty, at least 2 rows"),
    "header alone": (b"clicked,price,age,user,item", "is empty, at least 2 rows"),
    "gzip of nothing": (gzip.compress(b""), "is empty"),
    "one row": (b"clicked,price,age,user,item\n1,,,,\n", "1 rows .* at least 1"),
    "semicolons": (
        b"clicked;price\n1;2\n",
        "has no column 'clicked', .*'clicked;price'",
    ),
    "twice": (b"clicked,price,age,user,item,age\n", "has column 'age' twice, must"),
    "quote": (
        b'clicked,price,age,user,item\n1,2,3,4,"5\n0,2,3,4,5\n',
        "has a quote that does not end",
    ),
    "quote inside": (
        b'clicked,price,age,user,item\n1,2,3,4,5"6,7"8\n1,2,3,4,5\n',
        "is no table",
    ),
    "latin-1": (
        b"clicked,price,age,user,item\n" + b"1,2,3,4,\xe4\n" * 9,
        "is no table .*UTF-8 with a header",
    ),
    "late latin-1": (
        b"clicked,price,age,user,item\n" + b"1,2,3,4,5\n" * 9999 + b"1,2,3,4,\xe4\n",
        "is no table .*UTF-8 with a header",
    ),
    "garbage": (np.random.default_rng(0).bytes(1 << 14), "is no table|has no column"),
    "long header": (b"a" * 200_000, "is no table .*field larger"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "is no table"),
    "truncated gzip": (gzip.compress(as_csv(make_rows()))[:-9], "cannot be read"),
    "parquet mark": (b"PAR1", "cannot be read .*a whole parquet file is needed"),
    "half parquet": (as_parquet(make_rows())[:900], "cannot be read .*whole parquet"),
    "empty parquet": (
        as_parquet([dict.fromkeys(make_rows()[0], 1)]),
        "1 rows .* each split needs",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_cannot_be_used(tmp_path, name):
    content, message = BAD_FILES[name]
    with pytest.raises(DataError, match=f"table: .*(?:{message})"):
        open_table(tmp_path, content)


def test_damaged_parquet_is_a_data_error_or_data(tmp_path):
    content, generator = as_parquet(make_rows()), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for place in generator.integers(4, len(content), 3):
            damaged[place] = generator.integers(256)
        try:
            open_table(tmp_path, bytes(damaged))
        except DataError:
            refused += 1
    assert refused > 30


def test_files_that_are_not_there(tmp_path):
    schema = write(tmp_path / "schema.toml", SCHEMA)
    table = write(tmp_path / "table", as_csv(make_rows()))
    with pytest.raises(DataError, match=r"none: cannot be read \(.*No such file"):
        TableStream(tmp_path / "none", schema)
    with pytest.raises(DataError, match="is not a regular file"):
        TableStream(tmp_path, schema)
    with pytest.raises(DataError, match=r"none: cannot be read .*TOML file is needed"):
        TableStream(table, tmp_path / "none")
    with pytest.raises(DataError, match=r"cannot be read \(.*directory"):
        TableStream(table, tmp_path)
    with pytest.raises(ValueError, match="test_fraction is 1, must be above 0"):
        TableStream(table, schema, 1)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("", "key 'label' is missing, label and ids are needed"),
        ('label = "y"', "key 'ids' is missing"),
        ('label = "y"\nids = []', r"key 'ids' is \[\], must be a list .*, not empty"),
        ('label = "y"\nids = "user"', "key 'ids' is 'user', must be a list of names"),
        ('label = "y"\nids = ["u", 3]', r"key 'ids' is \['u', 3\], must be a list"),
        ('label = "y"\nids = [""]', "key 'ids' is"),
        ('label = 3\nids = ["u"]', "key 'label' is 3, must be the name of a column"),
        (
            'lable = "y"',
            "key 'lable' is unknown, must be one of label, ids, dense, lab",
        ),
        ('label = "y"\nids = ["u"]\n[more]', "key 'more' is unknown"),
        ('label = "y"\nids = ["u"]\ndense = 1', "key 'dense' is 1, must be a list"),
        (
            'label = "y"\nids = ["u"]\nlabel_min = "4"',
            "'label_min' is '4', must be a f",
        ),
        ('label = "y"\nids = ["u"]\nlabel_min = true', "key 'label_min' is True"),
        ('label = "y"\nids = ["u"]\nlabel_min = nan', "key 'label_min' is nan"),
        ('label = "y"\nids = ["u"]\norder_by = ["t"]', r"key 'order_by' is \['t'\]"),
        ('label = "y"\nids = ["u", "u"]', "key 'ids' has column 'u' twice"),
        (
            'label = "y"\nids = ["u", "y"]',
            "key 'ids' has column 'y', which is the label",
        ),
        (
            'label = "y"\nids = ["u"]\ndense = ["y"]',
            "key 'dense' has column 'y', which",
        ),
        ('label = "y"\nids = ["u"]\norder_by = "y"', "key 'order_by' has column 'y'"),
        ("label = y", r"is not TOML \(.*line 1.*; a schema such as"),
        (b"\xff", "is not TOML"),
        ("a = " + "[" * 9999, "is not TOML"),
    ],
)
def test_a_schema_that_cannot_be_used(tmp_path, schema, message):
    with pytest.raises(DataError, match=rf"schema\.toml: .*{message}"):
        open_table(tmp_path, "y,u\n1,2\n0,3\n", schema)


def test_a_column_may_be_dense_and_an_id_and_the_order(tmp_path):
    schema = 'label = "y"\nids = ["u"]\ndense = ["u"]\norder_by = "u"'
    found = whole(open_table(tmp_path, "y,u\n1,2\n0,0\n", schema, 0.5))
    assert found.ids.tolist() == [[0], [2]]
    np.testing.assert_allclose(found.dense, [[0], [math.log(3)]], rtol=3e-7)
