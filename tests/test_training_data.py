"""The main job on every kind of data: opened by name, trained, refused."""

import gzip

import numpy as np
import pytest

import avazu_rows
import criteo_rows
import movielens_rows
from fiited_jax import cli, training
from fiited_jax.data import CriteoStream, DataError
from helpers import refuse


def write_criteo(path, num_rows=400):
    return criteo_rows.write(path, criteo_rows.make_rows(num_rows))


def write_avazu(path, num_rows=400):
    """Write rows of one day, which is split by rows."""
    rows = avazu_rows.make_rows(num_rows)
    for row in rows:
        row[2] = f"141021{row[2][6:]}"
    return avazu_rows.write(path, rows)


def write_movielens(path, num_rows=400):
    ratings = movielens_rows.make_ratings(num_rows)
    return movielens_rows.write(path, movielens_rows.as_csv(ratings))


def write_table(path, num_rows=400):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 40, (num_rows, 3))
    lines = [f"{user},u{user},{item},{item % 2}\n" for user, _, item in rows]
    path.write_text("age,user,item,clicked\n" + "".join(lines))
    return path


WRITERS = {
    "avazu": write_avazu,
    "criteo": write_criteo,
    "movielens": write_movielens,
    "table": write_table,
}
SCHEMA = 'label = "clicked"\nids = ["user", "item"]\ndense = ["age"]\n'


def write_schema(folder, text=SCHEMA):
    path = folder / "schema.toml"
    path.write_text(text)
    return path


def options(data, path, **fields):
    """Return the options that name a data set."""
    schema = write_schema(path.parent) if data == "table" else None
    return training.TrainOptions(data=data, path=path, schema=schema, **fields)


def command(data, path):
    """Return the command line that names it."""
    schema = ["--schema", str(write_schema(path.parent))] if data == "table" else []
    return ["train", "--data", data, "--path", str(path), *schema]


@pytest.mark.parametrize(
    ("data", "num_tables"),
    [("avazu", 23), ("criteo", 26), ("movielens", 2), ("table", 2)],
)
def test_every_data_set_is_opened_by_its_name(data, num_tables, tmp_path):
    path = WRITERS[data](tmp_path / "rows")
    stream = training.open_stream(options(data, path, test_fraction=0.25))
    assert (stream.name, stream.num_tables) == (data, num_tables)
    assert (stream.num_train, stream.num_test) == (300, 100)


@pytest.mark.parametrize(
    ("data", "num_test"),
    [("avazu", 80), ("criteo", 80), ("movielens", 40), ("table", 80)],
)
def test_the_share_of_the_test_split_is_that_of_the_data_set(data, num_test, tmp_path):
    path = WRITERS[data](tmp_path / "rows")
    assert training.open_stream(options(data, path)).num_test == num_test


@pytest.mark.parametrize("data", ["avazu", "movielens", "table"])
def test_every_data_set_trains(data, tmp_path, capsys):
    path = WRITERS[data](tmp_path / "rows")
    arguments = ["--compression", "1.5", "--batch-size", "32"]
    assert cli.main([*command(data, path), *arguments]) == 0
    assert f"fiited on {data}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "png", "truncated"])
@pytest.mark.parametrize("data", WRITERS)
def test_bad_files_exit_with_2_and_no_traceback(data, kind, tmp_path, capsys):
    path = tmp_path / "rows"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "png":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9)
    elif kind == "truncated":
        whole = gzip.compress(WRITERS[data](tmp_path / "plain").read_bytes())
        path.write_bytes(whole[: len(whole) // 2])
    refuse(command(data, path), "rows", capsys)


@pytest.mark.parametrize("data", WRITERS)
def test_bad_data_exit_with_2_and_no_traceback(data, tmp_path, capsys):
    path = WRITERS[data](tmp_path / "rows", 50)
    with path.open("a") as file:
        file.write("\nno row\n")
    refuse(command(data, path), "columns", capsys)


def test_a_bad_row_of_the_test_split_is_met_before_training(tmp_path):
    rows = criteo_rows.make_rows(50)
    rows[-1][0] = "7"  # a label
    path = criteo_rows.write(tmp_path / "rows", rows)
    # Small blocks stand for a large file, of which only the first block is parsed.
    stream = CriteoStream(path, block_bytes=1000)
    with pytest.raises(DataError, match="'7'"):
        training.Trainer(options("criteo", path), stream)


BAD_SCHEMAS = {
    "unknown key": ('lable = "clicked"\n' + SCHEMA, "key 'lable' is unknown"),
    "missing column": (SCHEMA.replace("item", "itme"), "no column 'itme'"),
    "wrong type": (SCHEMA.replace('["age"]', '["user"]'), "column 'user' is 'u"),
    "label not 0 or 1": ('label = "age"\nids = ["user"]', "must be 0 or 1"),
    "label used": (SCHEMA.replace("age", "clicked"), "which is the label"),
    "no TOML": ("label: clicked", "is not TOML"),
}


@pytest.mark.parametrize("name", BAD_SCHEMAS)
def test_bad_schemas_exit_with_2_and_no_traceback(name, tmp_path, capsys):
    text, words = BAD_SCHEMAS[name]
    arguments = command("table", write_table(tmp_path / "rows"))
    write_schema(tmp_path, text)
    refuse(arguments, words, capsys)


def test_a_schema_is_needed_for_tables_and_only_for_them(tmp_path, capsys):
    for data in ("criteo", "table"):
        path = WRITERS[data](tmp_path / "rows")
        arguments = ["train", "--data", data, "--path", str(path)]
        if data != "table":
            arguments += ["--schema", str(write_schema(tmp_path))]
        refuse(arguments, "schema must be given with data=table", capsys)


def test_a_path_is_needed_for_all_data_but_the_demo(tmp_path, capsys):
    for data in WRITERS:
        refuse(["train", "--data", data], "path must be given", capsys)
    refuse(["train", "--path", str(tmp_path)], "path must be given", capsys)
    refuse(["train", "--data", "none", "--path", str(tmp_path)], "data", capsys)
