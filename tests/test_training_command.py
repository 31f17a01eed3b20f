"""The command `fiited train`: what it writes, prints and refuses."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import pytest

from criteo_rows import make_rows, write
from fiited_jax import cli, comparison, training
from fiited_jax.memory import MemoryReport
from fiited_jax.training.room import check_room
from helpers import refuse


def command(folder, num_rows=50):
    """Return a command line on a small file in the Criteo format."""
    path = write(folder / "rows.tsv", make_rows(num_rows))
    return ["train", "--data", "criteo", "--path", str(path)]


def test_the_command_writes_its_outputs(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [*command(tmp_path, 400), "--out", str(out)]
    assert cli.main([*arguments, "--batch-size", "32", "--compression", "2"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    for key in (
        "auc",
        "log_loss",
        "normalized_entropy",
        "all_in_bytes",
        "dense_bytes",
        "all_in_ratio",
        "values_ratio",
        "examples_per_second",
        "state_sha256",
    ):
        assert key in summary
    assert summary["all_in_ratio"] >= 2
    assert json.loads((out / "config.json").read_text())["batch_size"] == 32
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[-1]["examples"] == 320
    for name in ("auc.png", "bytes.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert "AUC" in capsys.readouterr().out


def test_an_interrupted_run_says_so(monkeypatch, tmp_path, capsys):
    def interrupt(self, reporter):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "train", interrupt)
    assert cli.main(command(tmp_path)) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.slow
def test_a_backend_may_not_report_its_memory(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
    out = tmp_path / "out"
    arguments = [*command(tmp_path), "--out", str(out)]
    assert cli.main([*arguments, "--compression", "1"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["prune_temporary_bytes"] is None
    assert "not reported" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_help_reads_well_at_80_columns(command, monkeypatch, capsys):
    own = {"train": training.TrainOptions, "compare": comparison.CompareOptions}
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert f"fiited {command} --data criteo" in text
    assert "None" not in text  # an option without a default says what it takes
    assert max(map(len, text.splitlines())) <= 80
    for field in dataclasses.fields(own[command]):
        assert re.search(rf"--{field.name.replace('_', '-')}[ ,]", text)
    # A line of the docstring that starts with anything but a letter breaks the text.
    for options in (training.SharedOptions, own[command]):
        _, attributes = (options.__doc__ or "").split("Attributes:\n")
        lines = attributes.rstrip().splitlines()
        assert all(line.strip()[0].isalpha() for line in lines)


def test_a_full_store_ends_the_run_if_asked_to(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.json").write_text("of a run before")
    sizes = ["--batch-size", "32", "--log-every", "2", "--compression", "40"]
    arguments = [*command(tmp_path, 400), *sizes, "--out", str(out)]
    refuse([*arguments, "--on-full", "error"], "out of entries at step 2:", capsys)
    assert [path.name for path in out.iterdir()] == ["summary.json"]
    assert (out / "summary.json").read_text() == "of a run before"


def test_a_store_with_room_is_not_stopped(tmp_path):
    arguments = [*command(tmp_path, 100), "--compression", "0.2"]
    assert cli.main([*arguments, "--on-full", "error"]) == 0


def test_room_is_told_by_evictions_and_failures():
    record = {"step": 40, "evicted": 0, "failed": 0, "misses": 9}
    check_room(record, num_ids=7)
    with pytest.raises(training.StoreFullError, match=r"40: 0 keys .* and 3 lookups"):
        check_room({**record, "failed": 3}, num_ids=7)
    with pytest.raises(training.StoreFullError, match=r"2 keys .* frames_per_entry"):
        check_room({**record, "evicted": 2}, num_ids=7)


REFUSED = {
    "unknown method": (["--method", "none"], "method"),
    "negative size": (["--embedding-dim", "-4"], "embedding_dim"),
    "chunk_dim": (["--chunk-dim", "5"], "chunk_dim must divide"),
    "tiny budget": (["--budget", "100B"], "one bucket"),
    "no size": (["--budget", "lots"], "'lots'"),
    "two sizes": (["--budget", "1MiB", "--compression", "2"], "exclude"),
    "compression": (["--compression", "0"], "compression"),
    "hash budget": (["--method", "hash", "--budget", "10B"], "one row"),
    "small_dim": (["--method", "small_dim", "--compression", "1000"], "one value"),
    "rate": (["--learning-rate", "nan"], "learning_rate"),
    "fraction": (["--test-fraction", "1.5"], "test_fraction"),
    "fpe": (["--frames-per-entry", "99"], "frames_per_entry"),
    "warm-up": (["--prune-warmup", "-1"], "prune_warmup"),
    "on_full": (["--on-full", "error", "--method", "hash"], "on_full"),
    "empty out": (["--out", ""], "--out must not be empty"),
    "empty out after =": (["--out="], "--out must not be empty"),
    "empty path": (["--path", ""], "--path must not be empty"),
    "empty argument": (["--seed", "1", ""], "an argument must not be empty"),
    "seed": (["--seed", "-1"], "seed"),
    "unknown option": (["--sede", "1"], "sede"),
    "long out": (["--out", "a" * 300], "out must be"),
    "huge budget": (["--budget", "9" * 400], "a size must be"),
    "tiny compression": (["--compression", "5e-324"], "compression"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_options_exit_with_2_and_no_traceback(name, tmp_path, capsys):
    arguments, words = REFUSED[name]
    refuse([*command(tmp_path), *arguments], words, capsys)


@pytest.mark.parametrize("name", ["auc.png", "bytes.png", "metrics.jsonl"])
def test_outputs_appear_whole_or_not_at_all(name, tmp_path, monkeypatch):
    memory = MemoryReport(values=8)
    result = training.TrainResult([], None, memory, 0, {}, 1.0, "")  # pyright: ignore
    summary = {"auc": 0.5}
    old = tmp_path / name
    old.write_text("of a run before")
    replace = Path.replace

    def fail(self, target):
        if target == old:
            raise OSError("no space left")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        training.write_outputs(tmp_path, training.TrainOptions(), result, summary)
    assert old.read_text() == "of a run before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_too_little_memory_is_said(monkeypatch, tmp_path, capsys):
    def fail(self, options, stream):
        raise MemoryError

    monkeypatch.setattr(training.Trainer, "__init__", fail)
    refuse(command(tmp_path), "memory", capsys)


def test_out_that_is_a_file_is_refused(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.touch()
    refuse(["train", "--out", str(taken)], "folder", capsys)
    refuse(["train", "--out", str(taken / "below")], "folder", capsys)
