"""What the reader of any table says of files and schemas that it cannot use."""

import datetime
import gzip
import io
import math

import numpy as np
import polars as pl
import pytest

from fiited_jax.data import DataError, TableStream
from table_rows import (
    ENCODERS,
    SCHEMA,
    as_csv,
    as_parquet,
    make_rows,
    open_table,
    write,
)

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


def test_a_panic_over_parquet_is_a_data_error(tmp_path, monkeypatch):
    def panic(*args, **fields):
        raise pl.exceptions.PanicException("assertion failed\nstack backtrace")

    monkeypatch.setattr(pl, "read_parquet", panic)
    message = r"cannot be read \(assertion failed\); a whole parquet file is needed"
    with pytest.raises(DataError, match=message):
        open_table(tmp_path, as_parquet(make_rows()))


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
