"""The drift benchmark: what counts as recovered, and that it runs."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import drift
import recovery
from fiited_jax.data import Batch

ROOT = Path(__file__).parents[1]


SMALL = drift.Setting(compression=4.0, phases=(1, 1, 1), seeds=2, rates=(0.1,))


@pytest.mark.parametrize(
    ("gaps", "windows"),
    [
        ([0, 0, 0, 0], 0),
        ([-0.1, -0.02, -0.01, 0], 2),  # as far as allowed is near enough
        ([-0.1, -0.02, -0.011, -0.009], 3),
        ([0.1, 0.1, 0.1, -0.02], None),  # ahead at first, behind at the end
        ([-0.1, 0.05, -0.02, 0.05], 3),  # back for good only
        ([-0.1, -0.1, -0.1, -0.1], None),
    ],
)
def test_recovered_is_who_comes_near_and_stays(gaps, windows):
    reference = np.array([0.6, 0.7, 0.75, 0.76])
    taken = recovery.recovery(reference + gaps, reference, tolerance=0.01, width=1)
    assert taken == windows


def test_recovery_looks_at_smoothed_curves():
    reference = np.full(6, 0.7)
    dip = reference + np.array([-0.1, 0, 0, 0.04, -0.04, 0])
    assert recovery.recovery(dip, reference, tolerance=0.01, width=1) == 5
    assert recovery.recovery(dip, reference, tolerance=0.01, width=3) == 3


def test_a_part_has_its_examples_and_the_vocabulary_of_all():
    stream = drift.open_stream(SMALL, 0)
    window = drift.WINDOW
    assert stream.changes == ((window, "popularity"), (2 * window, "concept"))
    part = drift.Part(stream, window, 3 * window)
    whole = next(stream.batches("train", 3 * window))
    (found,) = part.batches("train", 2 * window)
    for array, expected in zip(found, Batch(*whole), strict=True):
        np.testing.assert_array_equal(array, expected[window:])
    assert part.num_train == 2 * window
    assert part.vocabulary() is stream.vocabulary()


def test_rates_are_chosen_on_a_stream_of_no_reported_run(monkeypatch):
    tried = []

    def curve(line, setting, stream, seed, rate):
        tried.append((seed, rate, stream.num_train))
        return [rate == 0.1] * 8, 1.0

    monkeypatch.setattr(drift, "curve", curve)
    setting = drift.Setting(
        compression=4.0, phases=(2, 3, 4), seeds=2, rates=(0.03, 0.1, 1)
    )
    assert drift.choose_rate("hash", setting) == 0.1
    assert tried == [(2, rate, 2 * drift.WINDOW) for rate in setting.rates]


def test_a_line_names_a_method_and_options():
    assert drift.parse("hash") == ("hash", {})
    fields = {"half_life": 500, "fallback": "shared"}
    assert drift.parse("fiited:half_life=500,fallback=shared") == ("fiited", fields)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "pep"], "methods must be of adaembed, .*, got 'pep'"),
        (["--methods", "nobody"], "methods must be of .*, got 'nobody'"),
        (["--methods", "fiited:speed=1"], "fiited has no option speed"),
        (["--methods", "fiited:half_life"], "no value for half_life"),
        (["--compression", "0"], "compression must be from"),
        (["--seeds", "0"], "--seeds: must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_met_before_the_first_run(
    arguments, words, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["drift.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        drift.main()
    assert re.search(words, capsys.readouterr().err.replace("\n", " "))


def test_the_results_are_those_of_the_benchmark():
    results = json.loads((ROOT / "benchmarks" / "results" / "drift.json").read_text())
    assert results["rates"] == list(drift.RATES)
    assert results["window"] == drift.WINDOW
    assert results["phases"] == list(drift.PHASES)
    lines = {line["line"] for line in results["lines"]}
    extra = {drift.EXACT, drift.FOLLOWS}
    assert lines == {*drift.METHODS, *extra} - drift.OFFLINE


def judged(gap):
    fresh = np.tile([0.6, 0.7, 0.7, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5], (2, 1))
    auc = np.concatenate([np.full((2, 3), 0.8), fresh + gap], axis=1)
    setting = drift.Setting(compression=4.0, phases=(3, 4, 5), seeds=2, rates=(0.1,))
    return recovery.judge({"auc": auc.tolist()}, fresh, setting)


def test_every_change_has_its_own_phase():
    gap = np.array([[-0.1, 0.4, 0.1, 0.1, -0.9, 0.01, 0.01, -0.01, -0.03]] * 2)
    gap[1] += 0.002
    told = judged(gap)
    assert told["popularity"]["recovery"] == 1
    assert told["popularity"]["gap"] == pytest.approx(0.126)
    assert told["concept"]["recovery"] is None
    assert told["concept"]["gap"] == pytest.approx(-0.004)
    assert told["concept"]["gap_std"] == pytest.approx(0.002 / 2**0.5)


@pytest.mark.slow
def test_it_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    results, figure = tmp_path / "drift.json", tmp_path / "plots" / "auc.png"
    arguments = ["--quick", "--methods", "hash", "fiited:half_life=500", "small_dim"]
    arguments += ["--compression", "40", "--json", str(results), "--plot", str(figure)]
    monkeypatch.setattr(sys, "argv", ["drift.py", *arguments])
    drift.main()
    table = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in table[2:]]
    assert names == ["full", "hash", "fiited:half_life=500", "small_dim"]
    assert "does not fit" in table[-1]
    full, hashed, *_ = json.loads(results.read_text())["lines"]
    assert np.shape(full["fresh"]) == (1, 8)
    assert np.shape(hashed["auc"]) == (1, 12)
    assert hashed["auc"][0][3] > 0.6
    assert 0.5 < full["fresh"][0][0] < full["fresh"][0][3]  # starts untrained
    assert full["fresh"][0][0] < full["auc"][0][4]
    assert figure.read_bytes().startswith(b"\x89PNG")
