"""The command `fiited compare`: the quick form, exit codes, refusals."""

import pytest

from compared import FakeRunner, make_record
from criteo_rows import make_rows, write
from fiited_jax import cli
from fiited_jax.comparison.results import ResultsFile
from fiited_jax.comparison.runner import TrainerRunner
from fiited_jax.data import DataError
from helpers import refuse


@pytest.mark.slow
def test_the_quick_form(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["compare", "--quick", "--out", str(out), "--methods", "hash,fiited"]
    arguments += ["--learning-rates", "0.1,0.3"]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    assert "tuning hash 10x, learning rate 0.3: AUC 0." in told
    assert ", 0 left" in told
    report = (out / "report.md").read_text()
    assert report.startswith("`fiited` is ")
    assert report.splitlines()[0] in told
    assert {path.name for path in out.iterdir()} == {
        *("results.jsonl", "report.md", "auc_all_in.png", "auc_values.png")
    }
    assert len((out / "results.jsonl").read_text().splitlines()) == 6


def command(folder, *arguments):
    """Return a command line on a small file in the Criteo format."""
    path = write(folder / "rows.tsv", make_rows(50))
    start = ["compare", "--data", "criteo", "--path", str(path)]
    return [*start, "--out", str(folder / "out"), *arguments]


def test_exit_codes(monkeypatch, tmp_path, capsys):
    arguments = command(tmp_path, "--methods", "full", "--seeds", "2")
    stopped, rest = FakeRunner(stop_after=3), FakeRunner()
    monkeypatch.setattr(TrainerRunner, "__call__", lambda _, cell: stopped(cell))
    assert cli.main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err
    results = tmp_path / "out" / "results.jsonl"
    assert len(results.read_text().splitlines()) == 3
    assert not (tmp_path / "out" / "report.md").exists()
    monkeypatch.setattr(TrainerRunner, "__call__", lambda _, cell: rest(cell))
    assert cli.main(arguments) == 0
    assert len(rest.cells) == 2
    assert "3 of full found, 2 left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (DataError("row 7 is bad"), 2, "row 7 is bad"),
        (MemoryError(), 2, "memory does not suffice"),
        (OSError("disk full"), 1, "out cannot be written: disk full"),
    ],
)
def test_what_goes_wrong_on_the_way(
    error, status, words, monkeypatch, tmp_path, capsys
):
    def fail(self, record):
        raise error

    monkeypatch.setattr(TrainerRunner, "__call__", lambda *_: make_record(0.5))
    monkeypatch.setattr(ResultsFile, "add", fail)
    assert cli.main(command(tmp_path)) == status
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err


REFUSED = {
    "no methods": (["--methods="], "--methods must not be empty"),
    "only commas": (["--methods", ","], "methods must be names from"),
    "unknown method": (["--methods", "full,none"], "got 'full,none'"),
    "no number": (["--sizes", "2,x"], "sizes must be numbers"),
    "size zero": (["--sizes", "0"], "sizes must be numbers from 0.001"),
    "size nan": (["--sizes", "nan"], "sizes must be"),
    "no size": (["--sizes", "2,,3"], "got '2,,3'"),
    "rates": (["--learning-rates", "0.1;0.2"], "learning_rates must be numbers"),
    "negative rate": (["--learning-rates", "-0.1,1"], "learning_rates"),
    "seeds": (["--seeds", "0"], "seeds must be from 1 to 1000, got 0"),
    "many seeds": (["--seeds", "1001"], "seeds must be"),
    "tuning seeds": (["--tuning-seeds", "0"], "tuning_seeds must be from 1"),
    "fraction 0": (["--validation-fraction", "0"], "must be between 0 and 1, got 0"),
    "fraction 1": (["--validation-fraction", "1"], "must be between 0 and 1, got 1"),
    "no slice": (["--validation-fraction", "0.001"], "40 train examples at least one"),
    "quick": (["--quick"], "quick must come with data=demo"),
    "chunk_dim": (["--chunk-dim", "5"], "chunk_dim must divide"),
    # Before the methods that do not read it are run.
    "filter": (["--filter-share", "1.2"], "filter_share must be a share in"),
    "alpha": (["--length-alpha", "9"], "length_alpha must be"),
    "frames": (["--frames-per-entry", "99"], "frames_per_entry must be"),
    "empty out": (["--out", ""], "--out must not be empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_options_exit_with_2_and_no_traceback(name, tmp_path, capsys):
    arguments, words = REFUSED[name]
    refuse(command(tmp_path, *arguments), words, capsys)


def test_an_unusable_folder_is_refused(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.touch()
    refuse(["compare", "--quick", "--out", str(taken)], "out must be a folder", capsys)
    refuse(["compare", "--quick"], "out", capsys)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.jsonl").write_text("no result\n")
    refuse(command(tmp_path), "line 1 is not a result", capsys)


def test_bad_data_are_met_before_the_first_cell(tmp_path, capsys):
    arguments = command(tmp_path)
    with (tmp_path / "rows.tsv").open("a") as file:
        file.write("\nno row\n")
    refuse(arguments, "columns", capsys)
    assert not (tmp_path / "out" / "results.jsonl").exists()
