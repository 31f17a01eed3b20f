"""The report: its first lines, its tables and plots, on results made by hand."""

import re

import pytest
from matplotlib.axes import Axes

from compared import STREAM, make_options, make_outcome
from fiited_jax.comparison import Outcome, report_text, verdict, write_report
from fiited_jax.comparison.ablations import Change
from fiited_jax.comparison.cells import Line
from fiited_jax.comparison.plots import plot_frontier
from fiited_jax.methods import METHODS

FULL = make_outcome("full", None, 0.80, 0.80)


def test_a_loss_is_said_first(tmp_path):
    outcomes = [
        FULL,
        make_outcome("hash", 2.0, 0.71, 0.73),  # mean 0.72, standard error 0.01
        make_outcome("fiited", 2.0, 0.705, 0.705),
        make_outcome("hash", 10.0, 0.60, 0.60),
        make_outcome("fiited", 10.0, 0.70, 0.70),
    ]
    text = report_text(make_options(tmp_path), STREAM, outcomes)
    assert text.startswith(
        "`fiited` is below a baseline by more than one standard error at 1 of 2 "
        "sizes:\n\n- at 2x it has AUC 0.70500, and hash has AUC 0.72000: 0.01500 more, "
        "standard error 0.01000\n\n# Comparison on demo\n"
    )


def test_the_error_is_that_of_the_difference_of_means():
    hash_ = make_outcome("hash", 2.0, 0.71, 0.73)  # its own error: 0.01
    near = make_outcome("fiited", 2.0, 0.695, 0.719)  # 0.013 below, errors 0.012, 0.01
    assert "nowhere" in verdict([hash_, near])[0]
    far = make_outcome("fiited", 2.0, 0.692, 0.716)  # 0.016 below, of both: 0.0156
    assert "standard error 0.01562" in verdict([hash_, far])[2]


def test_no_loss_is_said_first(tmp_path):
    outcomes = [
        FULL,  # above, and no baseline of the same size
        make_outcome("hash", 2.0, 0.71, 0.73),
        make_outcome("small_dim", 2.0, 0.70, 0.70),
        make_outcome("fiited", 2.0, 0.715, 0.715),
        make_outcome("hash", 4.0, 0.79, 0.79),
    ]
    text = report_text(make_options(tmp_path), STREAM, outcomes)
    assert text.startswith(
        "`fiited` is nowhere below a baseline by more than one standard error; "
        "2 compared.\n"
    )


def test_with_one_seed_any_difference_counts():
    text = verdict([make_outcome("hash", 2.0, 0.71), make_outcome("fiited", 2.0, 0.7)])
    assert "at 1 of 1 sizes" in text[0]
    assert "single seed" in text[-1]


def test_what_is_not_compared_is_told():
    text = verdict(
        [
            make_outcome("fiited", 2.0, 0.7, 0.7),
            make_outcome("hash", 2.0, 0.8, None),
            make_outcome("qr", 2.0, 0.6, 0.6),
            Outcome(Line("small_dim", 2.0), None, (), "too small"),
        ]
    )
    assert "nowhere" in text[0]
    assert text[-1] == "Not compared, refused or diverged: hash 2x, small_dim 2x."


def test_what_takes_more_bytes_than_the_size_is_no_baseline(tmp_path):
    larger = make_outcome("pep", 2.0, 0.9, 0.9)
    larger = larger._replace(
        records=tuple({**record, "all_in_ratio": 0.5} for record in larger.records)
    )
    ours = make_outcome("fiited", 2.0, 0.7, 0.7)
    told = "Not at equal bytes, not counted: pep 2x (all-in ratio 0.50)."
    text = verdict([larger, ours, make_outcome("hash", 2.0, 0.6, 0.6)])
    assert "nowhere" in text[0]
    assert text[0].endswith("1 compared.")
    assert text[1:] == ["", told]
    text = verdict([larger, ours])
    assert "compared with nothing" in text[0]
    assert text[1:] == ["", told]
    text = report_text(make_options(tmp_path), STREAM, [larger, ours])
    assert "| pep | 0.9000 ± 0.0000 | 0.5000 ± 0.0000 | - | 0.5 | 3.0 |" in text
    assert "A method whose all-in ratio is below the size is no baseline" in text


REFUSED = Outcome(Line("fiited", 2.0), None, (), "one bucket takes 9 bytes")


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (REFUSED, "does not run (one bucket takes 9 bytes), and hash has AUC 0.7"),
        (make_outcome("fiited", 2.0, None, 0.8), "it diverges, and hash has AUC 0.7"),
    ],
)
def test_not_to_run_is_a_loss(ours, words):
    text = verdict([ours, make_outcome("hash", 2.0, 0.7, 0.7)])
    assert "one standard error, or does not run, at 1 of 1 sizes" in text[0]
    assert words in text[2]


@pytest.mark.parametrize(
    "outcomes",
    [
        [FULL, make_outcome("hash", 2.0, 0.7, 0.7)],
        [make_outcome("fiited", 2.0, 0.7, 0.7), FULL],
        [REFUSED, make_outcome("hash", 2.0, None, 0.7)],
        [REFUSED, make_outcome("hash", 4.0, 0.7, 0.7)],
        [REFUSED, Outcome(Line("hash", 2.0), None, (), "too small")],
    ],
)
def test_nothing_to_compare_with_is_no_victory(outcomes):
    (text,) = verdict(outcomes)
    assert "compared with nothing" in text


def test_the_tables(tmp_path):
    outcomes = [
        make_outcome("full", None, 0.80, 0.82, rate=0.1),
        make_outcome("hash", 2.0, 0.75, 0.75, rate=0.3),
        make_outcome("fiited", 2.0, 0.81, 0.83, rate=0.03),
        Outcome(Line("hash", 10.0), None, (), "a | b\nc"),
        make_outcome("fiited", 10.0, None, 0.7),
    ]
    options = make_options(tmp_path, validation_fraction=0.2)
    text = report_text(options, STREAM, outcomes)
    for number, part in ((2, "## 2x"), (3, "## 10x")):
        assert len(re.findall(r"(?m)^\| (?!method)", text.split(part)[1])) >= number
    assert "| full | 0.8100 ± 0.0141 | 0.5000 ± 0.0000 | - | 1.0 | 1.5 | 0.1 |" in text
    assert (
        "| hash | 0.7500 ± 0.0000 | 0.5000 ± 0.0000 | -0.0600 | 2.0 | 3.0 | 0.3* |"
        in text
    )
    assert "| fiited | 0.8200 ± 0.0141 | 0.5000 ± 0.0000 | +0.0100 | 2.0" in text
    assert r"| hash | does not run: a \| b c |" in text
    assert "| fiited | diverged | 0.5000 ± 0.0000 | - |" in text
    assert "400 training and 100 test examples" in text
    assert "0.03, 0.1, 0.3" in text
    assert "last 20 % of the training split" in text


def test_ablations_have_a_table_of_their_own(tmp_path):
    options = make_options(tmp_path, half_life=7.0)
    ours = make_outcome("fiited", 2.0, 0.7, 0.72)
    other = make_outcome("hash", 2.0, 0.65, 0.65)
    line = Line("fiited", 2.0, Change("scorer", "frequency"))
    better = ours._replace(line=line, records=make_outcome("", 2.0, 0.8, 0.8).records)
    small = Outcome(line._replace(change=Change("chunk_dim", 4)), 0.1, (), "too small")
    outcomes = [ours, other, better, small]
    text = report_text(options, STREAM, outcomes)
    assert "half_life=7.0" in text
    assert verdict(outcomes) == verdict([ours, other])
    whole, table = text.split("## Options of fiited")
    assert "frequency" not in whole
    assert "| 2x | unchanged | 0.7100 ± 0.0141 | - | 0.5000" in table
    assert (
        "| 2x | `scorer=frequency` | 0.8000 ± 0.0000 | +0.0900 ± 0.0100 | 0.5000"
        in table
    )
    assert "| 2x | `chunk_dim=4` | does not run: too small |" in table
    write_report(options, STREAM, outcomes)
    drawn = (tmp_path / "auc_all_in.png").read_bytes()
    write_report(options, STREAM, [ours, other])
    assert (tmp_path / "auc_all_in.png").read_bytes() == drawn


def test_an_ablation_that_diverged_has_no_change_of_auc(tmp_path):
    ours = make_outcome("fiited", 2.0, 0.7, 0.72)
    line = Line("fiited", 2.0, Change("scorer", "frequency"))
    diverged = make_outcome("", 2.0, None, 0.8)._replace(line=line)
    text = report_text(make_options(tmp_path), STREAM, [ours, diverged])
    assert "| `scorer=frequency` | diverged | - |" in text


def test_one_seed_has_no_spread_and_one_rate_no_end(tmp_path):
    ours = make_outcome("fiited", 2.0, 0.7, rate=0.1)
    line = Line("fiited", 2.0, Change("scorer", "frequency"))
    changed = make_outcome("", 2.0, 0.71, rate=0.1)._replace(line=line)
    options = make_options(tmp_path, seeds=1, learning_rates="0.1")
    text = report_text(options, STREAM, [ours, changed])
    assert "| `scorer=frequency` | 0.7100 | +0.0100 |" in text
    assert "±" not in text
    assert "standard error" not in text.split("## Options")[1]
    assert "*" not in text.split("## 2x")[1].split("##")[0]


def test_the_best_of_a_size_is_bold(tmp_path):
    more = make_outcome("pep", 2.0, 0.9, 0.9)
    (records := [dict(record) for record in more.records])[0]["all_in_ratio"] = 0.4
    outcomes = [
        make_outcome("full", None, 0.8, 0.8),
        make_outcome("hash", 2.0, 0.6, 0.6),
        make_outcome("fiited", 2.0, 0.7, 0.72),
        more._replace(records=tuple(records)),
        make_outcome("fiited", 10.0, None, 0.7),
        REFUSED._replace(line=Line("hash", 10.0)),
    ]
    text = report_text(make_options(tmp_path), STREAM, outcomes)
    table = text.split("## AUC")[1].split("##")[0].split()
    assert " ".join(table) == (
        "| method | full | 2x | 10x | | --- | --- | --- | --- | "
        "| full | 0.8000 ± 0.0000 | - | - | "
        "| hash | - | 0.6000 ± 0.0000 | - | "
        "| fiited | - | **0.7100 ± 0.0141** | diverged | "
        "| pep | - | (0.9000 ± 0.0000) | - |"
    )


def test_full_alone_and_no_full(tmp_path):
    options = make_options(tmp_path)
    assert "| method | full |" in report_text(options, STREAM, [FULL])
    text = report_text(options, STREAM, [make_outcome("hash", 2.0, 0.7, 0.7)])
    assert "| hash | 0.7000 ± 0.0000 | 0.5000 ± 0.0000 | - |" in text


def test_every_method_looks_different(tmp_path, monkeypatch):
    looks, draw = set(), Axes.errorbar

    def errorbar(self, *args, **fields):
        looks.add((fields["color"], fields["linestyle"]))
        return draw(self, *args, **fields)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    outcomes = [make_outcome(method, 2.0, 0.7, 0.8) for method in METHODS]
    plot_frontier(tmp_path / "plot.png", outcomes, "all_in_bytes", "bytes")
    assert len(looks) == len(METHODS)


def test_report_and_plots_are_written(tmp_path):
    outcomes = [
        FULL,
        make_outcome("hash", 2.0, 0.71, 0.73),
        make_outcome("hash", 10.0, None, 0.73),
        REFUSED,
    ]
    write_report(make_options(tmp_path), STREAM, outcomes)
    names = {"report.md", "auc_all_in.png", "auc_values.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names - {"report.md"}:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert name in (tmp_path / "report.md").read_text()
    write_report(make_options(tmp_path), STREAM, [REFUSED])  # nothing to plot
