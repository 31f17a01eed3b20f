"""The command `fiited compare`: real runs, exit codes, refusals."""

import gc
import json

import jax
import pytest
from rich.console import Console

from compared import FakeRunner, make_options, make_record
from criteo_rows import make_rows, write
from fiited_jax import cli, comparison, training
from fiited_jax.comparison.cells import Line, final_cells
from fiited_jax.comparison.results import ResultsFile
from fiited_jax.comparison.runner import TrainerRunner
from fiited_jax.data import DataError, DemoStream
from helpers import refuse

OF_THE_CLOCK = ("seconds", "examples_per_second")


class Guarded(DemoStream):
    """A stream whose test split may be forbidden; notes what is read.

    Attributes:
      forbidden: whether reading the test split is an error.
      read: splits, in the order of reading.
    """

    def __init__(self):
        super().__init__(400, 100)
        self.forbidden, self.read = False, []

    def batches(self, split, batch_size):
        assert split == "train" or not self.forbidden
        self.read.append(split)
        return super().batches(split, batch_size)


def small(out):
    """Three cells: a search over two rates and one reported run."""
    fields = {"methods": "hash", "sizes": "4", "seeds": 1, "learning_rates": "0.1,0.3"}
    return make_options(out, **fields)


def run(options, stream, around=lambda run_cell, cell: run_cell(cell)):
    """Run a comparison by real training; `around` is called for every cell."""

    def make_runner(*arguments):
        runner = TrainerRunner(*arguments)
        return lambda cell: around(runner, cell)

    progress = comparison.CompareProgress(Console(quiet=True))
    return comparison.Comparison(options, stream, progress, make_runner).run()


def stable(options):
    """What results.jsonl holds, without what differs from run to run."""
    text = (options.out / "results.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    return [
        {name: record[name] for name in record if name not in OF_THE_CLOCK}
        for record in records
    ]


def live():
    """Count bytes of arrays and pieces of compiled code in memory."""
    arrays = sum(array.nbytes for array in jax.live_arrays())
    return arrays, len(jax.devices()[0].client.live_executables())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison in one go, in which tuning may not read the test split."""
    options, stream = small(tmp_path_factory.mktemp("whole")), Guarded()
    reads, held = [], []

    def around(run_cell, cell):
        stream.forbidden, stream.read = cell.kind == "tuning", []
        result = run_cell(cell)
        stream.forbidden = False
        reads.append((cell.kind, set(stream.read)))
        left = live()
        gc.collect()
        held.append((left, live()))
        return result

    run(options, stream, around)
    return stable(options), reads, held


def test_tuning_never_reads_the_test_split(whole):
    _, reads, _ = whole
    assert reads == [
        *[("tuning", {"train"})] * 2,
        ("final", {"train", "test"}),
    ]


def test_the_slice_is_smaller_and_so_is_its_budget(whole):
    tuning, _, final = whole[0]
    assert tuning["dense_bytes"] < final["dense_bytes"]
    assert tuning["all_in_ratio"] == pytest.approx(4, rel=0.01)
    assert final["all_in_ratio"] == pytest.approx(4, rel=0.01)


def test_a_cell_leaves_nothing_in_memory(whole):
    records, _, held = whole
    assert max(left[0] for left, _ in held) < records[0]["all_in_bytes"] / 4
    for left, after_collection in held:
        assert left == after_collection


@pytest.mark.parametrize("stop_after", [1, 2])
def test_interrupted_training_ends_with_the_same_results(stop_after, whole, tmp_path):
    options, ran = small(tmp_path), []

    def stop(run_cell, cell):
        if len(ran) == stop_after:
            raise KeyboardInterrupt
        ran.append(cell)
        return run_cell(cell)

    with pytest.raises(KeyboardInterrupt):
        run(options, Guarded(), stop)
    assert len(stable(options)) == stop_after

    def count(run_cell, cell):
        ran.append(cell)
        return run_cell(cell)

    run(options, Guarded(), count)
    assert len(ran) == len(set(ran)) == 3
    assert stable(options) == whole[0]


def test_a_size_that_a_method_refuses_and_what_is_no_refusal(monkeypatch, tmp_path):
    options, stream = small(tmp_path), Guarded()
    runner = TrainerRunner(stream, stream, comparison.CompareProgress(Console()))
    (huge,) = final_cells(options, Line("hash", 1e8), 0.1)
    assert "budget is too small" in runner(huge)["refused"]
    (cell,) = final_cells(options, Line("hash", 2.0), 0.1)

    def fail(self, *arguments):
        raise error

    for name, error in (("__init__", DataError("row 7")), ("train", ValueError("bug"))):
        with monkeypatch.context() as patch:
            patch.setattr(training.Trainer, name, fail)
            with pytest.raises(ValueError, match=str(error)):
                runner(cell)


def test_the_quick_form(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["compare", "--quick", "--out", str(out), "--methods", "hash,fiited"]
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
    "fraction 0": (["--validation-fraction", "0"], "must be between 0 and 1, got 0"),
    "fraction 1": (["--validation-fraction", "1"], "must be between 0 and 1, got 1"),
    "no slice": (["--validation-fraction", "0.001"], "40 train examples at least one"),
    "quick": (["--quick"], "quick must come with data=demo"),
    "chunk_dim": (["--chunk-dim", "5"], "chunk_dim must divide"),
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
