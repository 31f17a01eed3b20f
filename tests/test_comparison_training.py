"""Comparisons by real training: what is read, kept in memory and found again."""

import gc
import json

import jax
import pytest
from rich.console import Console

from compared import make_options
from fiited_jax import comparison, training
from fiited_jax.comparison.cells import Line, final_cells
from fiited_jax.comparison.runner import TrainerRunner
from fiited_jax.data import DataError, DemoStream

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
    before = live()  # of other tests of this process

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
    return stable(options), reads, [before, *held]


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
    records, _, (before, *held) = whole
    most = max(left[0] for left, _ in held) - before[0]
    assert most < records[0]["all_in_bytes"] / 4
    for left, after_collection in held:
        assert left == after_collection


@pytest.mark.slow
def test_interrupted_training_ends_with_the_same_results(whole, tmp_path):
    options, ran = small(tmp_path), []

    def stop(run_cell, cell):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(cell)
        return run_cell(cell)

    with pytest.raises(KeyboardInterrupt):
        run(options, Guarded(), stop)
    assert len(stable(options)) == 2

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

    for name, error in (
        ("__init__", DataError("row 7")),
        ("__init__", ValueError("bug")),
        ("train", ValueError("bug")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(training.Trainer, name, fail)
            with pytest.raises(ValueError, match=str(error)):
                runner(cell)
