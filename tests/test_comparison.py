"""The cells of a comparison: which run, with what, and which are found again."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from compared import STREAM, FakeRunner, make_options, run_fake
from fiited_jax.comparison import CompareProgress, ablations, cells, report_text
from fiited_jax.comparison.options import LAST_SEED
from fiited_jax.comparison.results import ResultsFile
from fiited_jax.data import DemoStream, Vocabulary
from fiited_jax.methods import METHODS, STORE_OPTIONS, Request
from fiited_jax.scorers import SCORERS
from fiited_jax.training import TrainOptions

OF_REQUEST = {"embedding_dim"} | STORE_OPTIONS - {
    *("scorer", "prune_interval", "prune_warmup")
}


def results(out):
    return [
        json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()
    ]


def test_every_line_is_tuned_and_then_run_with_every_seed(tmp_path):
    options = make_options(tmp_path, learning_rates="0.3,0.1", embedding_dim=4)
    runner = FakeRunner()
    outcomes, told = run_fake(options, runner)
    assert [str(outcome.line) for outcome in outcomes] == [
        *("full", "hash 2x", "hash 10x", "fiited 2x", "fiited 10x")
    ]
    for outcome in outcomes:
        ran = [cell for cell in runner.cells if cell.line == outcome.line]
        assert [
            (cell.kind, cell.options.seed, cell.validation_fraction) for cell in ran
        ] == [
            *[("tuning", LAST_SEED, 0.1)] * 2,
            *[("final", seed, None) for seed in range(2)],
        ]
        assert [cell.options.learning_rate for cell in ran[:2]] == [0.1, 0.3]
        assert {cell.options.embedding_dim for cell in ran} == {4}
        assert len(outcome.records) == 2
    lines = told.splitlines()
    assert lines[0] == "tuning full, learning rate 0.1: AUC 0.7300, 19 left"
    assert lines[-1] == "fiited 10x, seed 1: AUC 0.7100, 0 left"
    assert len(lines) == len(results(tmp_path)) == 20


def test_the_rate_is_the_best_on_the_slice_for_each_line(tmp_path):
    best = {"hash 2x": 0.03, "hash 10x": 0.3, "fiited 2x": 0.1, "fiited 10x": 0.03}

    def auc(cell):
        if cell.kind == "tuning":
            return 0.6 if cell.options.learning_rate == best[str(cell.line)] else 0.5
        return 0.9 - cell.options.learning_rate  # what the test split would prefer

    options = make_options(tmp_path, methods="hash,fiited")
    outcomes, _ = run_fake(options, FakeRunner(auc))
    assert {str(outcome.line): outcome.rate for outcome in outcomes} == best
    for outcome in outcomes:
        assert {record["learning_rate"] for record in outcome.records} == {outcome.rate}


def test_a_run_that_diverged_is_not_chosen_and_equal_ones_by_the_lower_rate(tmp_path):
    aucs = {0.03: None, 0.1: 0.5, 0.2: 0.6, 0.3: 0.6}
    options = make_options(tmp_path, methods="full", learning_rates="0.3,0.2,0.1,0.03")
    outcomes, told = run_fake(
        options, FakeRunner(lambda cell: aucs[cell.options.learning_rate])
    )
    assert outcomes[0].rate == 0.2
    assert "learning rate 0.03: AUC not finite" in told


def test_a_rate_is_chosen_by_the_mean_over_tuning_seeds(tmp_path):
    aucs = {(0.1, 0): 0.6, (0.1, 1): 0.7, (0.3, 0): 0.9, (0.3, 1): 0.3, (1, 0): 0.9}

    def auc(cell):
        return aucs.get((cell.options.learning_rate, LAST_SEED - cell.options.seed))

    runner = FakeRunner(auc)
    options = make_options(
        tmp_path, methods="full", learning_rates="0.1,0.3,1", tuning_seeds=2
    )
    outcomes, told = run_fake(options, runner)
    assert outcomes[0].rate == 0.1
    assert [cell.kind for cell in runner.cells] == ["tuning"] * 6 + ["final"] * 2
    assert told.endswith(" 0 left\n")
    assert "with 2 other seeds" in report_text(options, STREAM, outcomes)


def test_one_rate_needs_no_search(tmp_path):
    runner = FakeRunner()
    options = make_options(tmp_path, methods="full", learning_rates="0.2")
    outcomes, _ = run_fake(options, runner)
    assert [cell.kind for cell in runner.cells] == ["final"] * 2
    assert outcomes[0].rate == 0.2


@pytest.mark.parametrize("stop_after", [0, 3, 4, 11])
def test_an_interrupted_run_goes_on_where_it_was(stop_after, tmp_path):
    whole = make_options(tmp_path / "whole")
    uninterrupted = FakeRunner()
    wanted, _ = run_fake(whole, uninterrupted)
    options = make_options(tmp_path / "stopped")
    first, second, third = FakeRunner(stop_after=stop_after), FakeRunner(), FakeRunner()
    with pytest.raises(KeyboardInterrupt):
        run_fake(options, first)
    got, told = run_fake(options, second)
    assert first.cells + second.cells == uninterrupted.cells
    assert got == wanted
    assert results(options.out) == results(whole.out)
    assert told.endswith(" 0 left\n")
    assert run_fake(options, third)[0] == wanted
    assert third.cells == []


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_without_its_end_is_dropped_and_its_cell_run_again(cut, tmp_path):
    options = make_options(tmp_path)
    wanted, _ = run_fake(options, FakeRunner())
    path = tmp_path / "results.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    runner = FakeRunner()
    assert run_fake(options, runner)[0] == wanted
    assert len(runner.cells) == 1
    assert path.read_bytes() == content


def test_results_of_other_options_and_data_are_kept_and_ignored(tmp_path):
    runs = [
        ({}, STREAM),
        ({"embedding_dim": 8}, STREAM),
        ({}, DemoStream(400, 99)),
        ({}, DemoStream(400, 100, seed=1)),
    ]
    before = 0
    for fields, stream in runs:
        runner = FakeRunner()
        run_fake(make_options(tmp_path, **fields), runner, stream)
        assert len(runner.cells) == 25
        found = results(tmp_path)
        assert len({record["key"] for record in found}) == len(found) == before + 25
        before = len(found)


def test_more_seeds_and_another_slice_run_what_is_new(tmp_path):
    run_fake(make_options(tmp_path, methods="full"), FakeRunner())
    more, slice_ = FakeRunner(), FakeRunner()
    run_fake(make_options(tmp_path, methods="full", seeds=3), more)
    assert [cell.options.seed for cell in more.cells] == [2]
    options = make_options(tmp_path, methods="full", validation_fraction=0.2)
    run_fake(options, slice_)
    assert [cell.kind for cell in slice_.cells] == ["tuning"] * 3


def test_where_data_lie_does_not_change_a_key(tmp_path):
    def key(path, method="hash", **fields):
        options = make_options(tmp_path, data="criteo", path=path, **fields)
        line = cells.Line(method, 2.0)
        return cells.final_cells(options, line, 0.1)[0].key("data")

    assert key(tmp_path / "a") == key(tmp_path / "b")
    assert key(tmp_path) != key(tmp_path, dense_learning_rate=0.5)
    assert key(tmp_path) == key(tmp_path, half_life=7.0)  # hash does not read it
    assert key(tmp_path, "fiited") != key(tmp_path, "fiited", half_life=7.0)


def test_results_of_another_jax_are_not_found(tmp_path, monkeypatch):
    cell = cells.final_cells(make_options(tmp_path), cells.Line("hash", 2.0), 0.1)[0]
    key = cell.key("data")
    monkeypatch.setattr(cells.jax, "__version__", "0.0.1")
    assert cell.key("data") != key


def test_an_ablation_has_the_rate_of_the_unchanged_line(tmp_path, monkeypatch):
    tried = {"scorer": ("grad_norm", "frequency"), "chunk_dim": (3, 4)}
    monkeypatch.setattr(ablations, "_TRIED", tried)

    def auc(cell):
        return 0.9 - cell.options.learning_rate * (cell.options.compression == 2)

    options = make_options(tmp_path, methods="fiited", ablations=True)
    runner = FakeRunner(auc)
    outcomes, told = run_fake(options, runner)
    assert [str(outcome.line) for outcome in outcomes] == [
        *("fiited 2x", "fiited 10x"),
        *("fiited 2x, scorer=frequency", "fiited 2x, chunk_dim=4"),
        *("fiited 10x, scorer=frequency", "fiited 10x, chunk_dim=4"),
    ]
    rates = [outcome.rate for outcome in outcomes]
    assert rates[2:] == [rates[0]] * 2 + [rates[1]] * 2
    assert rates[0] != 0.3
    changed = [cell.options for cell in runner.cells if cell.line == outcomes[5].line]
    assert [(o.chunk_dim, o.scorer, o.seed) for o in changed] == [
        *((4, "grad_norm", 0), (4, "grad_norm", 1))
    ]
    assert told.endswith(" 0 left\n")
    again = FakeRunner()
    assert run_fake(options, again)[0] == outcomes
    assert again.cells == []


def test_what_does_not_run_is_not_ablated(tmp_path):
    options = make_options(tmp_path, methods="fiited", ablations=True)
    runner = FakeRunner(refuse=lambda cell: "too small")
    outcomes, told = run_fake(options, runner)
    assert len(runner.cells) == 2
    assert outcomes[-1].refused == "nor does fiited 10x"
    assert told.endswith(" 0 left\n")


@pytest.mark.parametrize(
    "fields",
    [
        *({}, {"embedding_dim": 64}, {"embedding_dim": 2}),
        {"ranking": "chunks", "embedding_dim": 64, "chunk_dim": 4},
        {"frames_per_entry": 2.0},
        {"filter_share": 0.6},
        {"fallback": "shared", "shared_share": 0.96},
    ],
)
def test_the_store_allows_every_change(fields, tmp_path):
    options = make_options(tmp_path, methods="fiited", sizes="2", **fields)
    tried = ablations.changes(options)
    known = Vocabulary([np.arange(1000)])
    assert len(tried) > 12
    for change in tried:
        line = cells.Line("fiited", 2.0, change)
        (cell, *_) = cells.final_cells(options, line, 0.1)
        assert getattr(cell.options, change.option) == change.value
        METHODS["fiited"](
            Request(
                budget=1 << 20,
                num_tables=1,
                vocabulary=known,
                optimizer=cell.options.sparse_optimizer(),
                **{name: getattr(cell.options, name) for name in OF_REQUEST},
                scorer=SCORERS[cell.options.scorer](),
            )
        )


def test_what_changes_nothing_is_not_tried(tmp_path):
    def tried(**fields):
        options = make_options(tmp_path, methods="fiited", **fields)
        return {str(change) for change in ablations.changes(options)}

    lengths, chunks = tried(), tried(ranking="chunks", chunk_dim=2)
    assert "length_alpha=2.0" in lengths
    assert not any("length_alpha" in change for change in chunks)
    assert {"page_table=hashed", "page_table=rows"} <= lengths
    assert "value_dtype=bfloat16" not in lengths
    by_rows = tried(page_table="rows")
    assert not any("frames_per_entry" in change for change in by_rows)
    assert "filter_share=0.05" not in by_rows


def test_the_fingerprint_is_that_of_every_example():
    class Changed(DemoStream):
        def batches(self, split, batch_size):
            for batch in super().batches(split, batch_size):
                batch.labels[-1] = 1 - batch.labels[-1]
                yield batch

    prints = {cells.fingerprint(kind(40, 20)) for kind in (DemoStream, Changed)}
    prints |= {cells.fingerprint(DemoStream(41, 19)), cells.fingerprint(STREAM)}
    assert len(prints) == 4
    assert cells.fingerprint(DemoStream(40, 20)) in prints


@pytest.mark.parametrize("kind", ["tuning", "final"])
def test_a_refusal_is_recorded_and_ends_its_line(kind, tmp_path):
    def refuse(cell):
        is_it = cell.line == cells.Line("hash", 10.0) and cell.kind == kind
        return "one row takes 9 bytes" if is_it else None

    options = make_options(tmp_path)
    runner = FakeRunner(refuse=refuse)
    outcomes, told = run_fake(options, runner)
    assert [outcome.refused for outcome in outcomes] == [
        *(None, None, "one row takes 9 bytes", None, None)
    ]
    assert outcomes[2].records == ()
    num_ran = {"tuning": 1, "final": 4}[kind]
    assert (
        sum(cell.line == cells.Line("hash", 10.0) for cell in runner.cells) == num_ran
    )
    refused = [record for record in results(tmp_path) if "refused" in record]
    assert [record["refused"] for record in refused] == ["one row takes 9 bytes"]
    assert "hash 10x" in told
    assert told.endswith(" 0 left\n")
    again = FakeRunner()
    assert run_fake(options, again)[0] == outcomes
    assert again.cells == []


RECORD = b'{"key": "a", "refused": "too small"}\n'


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b"{}", b'{"key": 1}', b'{"key": "b"}', b"[" * 100_000, b""]
)
def test_a_file_that_holds_something_else_is_refused(line, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(RECORD + line + b"\n")
    with pytest.raises(ValueError, match="line 2 is not a result"):
        ResultsFile(path)
    assert path.read_bytes() == RECORD + line + b"\n"


def test_only_what_begins_as_a_result_is_dropped(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"my notes, without an end")
    with pytest.raises(ValueError, match="last line is not a result"):
        ResultsFile(path)
    assert path.read_bytes() == b"my notes, without an end"
    for tail in (b'{"k', b'{"key": "b", "auc": 0.7', b""):
        path.write_bytes(RECORD + tail)
        assert ResultsFile(path).get("a")["refused"] == "too small"
        assert path.read_bytes() == RECORD


def test_the_bar_fits_80_columns():
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True)
    progress = CompareProgress(console)
    options = TrainOptions(method="small_dim", compression=10, learning_rate=0.003)
    progress.open(400)
    progress.begin(cells.Cell("tuning", cells.Line("small_dim", 10.0), options, 0.1))
    progress.start(2_500)
    progress.log({"step": 2_480})
    progress.finish({"auc": 0.71234})
    progress.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    lines = [line.rstrip() for line in re.split(r"[\r\n]", text) if line.strip()]
    cell = "tuning small_dim 10x, learning rate 0.003"
    assert f"{cell}: AUC 0.7123, 399 left" in lines
    assert max(map(len, lines)) <= 80
    assert re.match(r" *1/400 .*", lines[-1])
    assert lines[-1].endswith(f"{cell}, step 2480/2500")
