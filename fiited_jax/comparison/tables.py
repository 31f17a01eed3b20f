"""The tables of a report, in Markdown."""

import math
from collections.abc import Iterable, Sequence

from .cells import Line
from .options import OURS
from .outcome import Outcome

__all__ = ["ablation_table", "auc_table", "size_table"]


def auc_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the AUC of every method at every size; the best of a size in bold.

    Args:
      outcomes: of lines without a change. What takes more bytes than the size is in
        brackets and never the best; method full has one column.
    """
    methods = dict.fromkeys(outcome.line.method for outcome in outcomes)
    sizes = dict.fromkeys(outcome.line.size for outcome in outcomes)
    by_line = {outcome.line: outcome for outcome in outcomes}
    best = {
        size: max(
            (
                o.mean("auc")
                for o in outcomes
                if o.line.size == size and o.fits_size and not math.isnan(o.mean("auc"))
            ),
            default=math.nan,
        )
        for size in sizes
    }

    def cell(method: str, size: float | None) -> str:
        outcome = by_line.get(Line(method, size))
        if outcome is None or outcome.refused is not None:
            return "-"
        text = _spread(outcome, "auc")
        if not outcome.fits_size:
            return f"({text})"
        is_best = size is not None and outcome.mean("auc") == best[size]
        return f"**{text}**" if is_best else text

    head = ["method", *("full" if size is None else f"{size:g}x" for size in sizes)]
    rows = [[method, *(cell(method, size) for size in sizes)] for method in methods]
    return _table(head, rows)


def size_table(
    outcomes: Sequence[Outcome], full: Outcome | None, rates: Sequence[float]
) -> list[str]:
    """Return all that is known of the methods at one size.

    Args:
      outcomes: the rows.
      full: what the gap is to.
      rates: the learning rates tried, ascending.
    """
    head = ["method", "AUC", "log loss", "gap to full", "all-in ratio", "values ratio"]

    def row(outcome: Outcome) -> list[str]:
        if outcome.refused is not None:
            return [outcome.line.method, _reason(outcome)]
        gap = math.nan if full is None else outcome.mean("auc") - full.mean("auc")
        at_end = len(rates) > 1 and outcome.rate in (rates[0], rates[-1])
        return [
            outcome.line.method,
            _spread(outcome, "auc"),
            _spread(outcome, "log_loss"),
            "-" if math.isnan(gap) or outcome is full else f"{gap:+.4f}",
            *_ratios(outcome),
            f"{outcome.rate:g}{'*' if at_end else ''}",
        ]

    return _table([*head, "learning rate"], map(row, outcomes))


def ablation_table(
    outcomes: Sequence[Outcome], ablations: Sequence[Outcome]
) -> list[str]:
    """Return what one option at a time changes, with the standard error of that.

    Args:
      outcomes: of lines without a change.
      ablations: of lines with one.
    """
    head = ["size", "option", "AUC", "change of AUC", "log loss"]

    def row(outcome: Outcome, ours: Outcome) -> list[str]:
        change = outcome.line.change
        name = "unchanged" if change is None else f"`{change}`"
        first = [f"{ours.line.size:g}x", name]
        if outcome.refused is not None:
            return [*first, _reason(outcome)]
        return [
            *first,
            _spread(outcome, "auc"),
            "-" if change is None else _gain(outcome, ours),
            _spread(outcome, "log_loss"),
            *_ratios(outcome),
        ]

    rows = [
        row(outcome, ours)
        for ours in outcomes
        if ours.line.method == OURS
        for outcome in (ours, *ablations)
        if outcome.line.unchanged == ours.line
    ]
    return _table([*head, "all-in ratio", "values ratio"], rows)


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Return lines of Markdown; cells that a row lacks are empty."""
    lines = [head, ["---"] * len(head)]
    lines += [row + [""] * (len(head) - len(row)) for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _gain(outcome: Outcome, ours: Outcome) -> str:
    """Return the difference of mean AUC; with several seeds its standard error too."""
    gain = outcome.mean("auc") - ours.mean("auc")
    if math.isnan(gain):
        return "-"
    if len(outcome.records) == 1:
        return f"{gain:+.4f}"
    error = math.sqrt(sum(o.variance_of_mean("auc") for o in (ours, outcome)))
    return f"{gain:+.4f} ± {error:.4f}"


def _ratios(outcome: Outcome) -> list[str]:
    return [f"{outcome.mean(f'{name}_ratio'):.1f}" for name in ("all_in", "values")]


def _reason(outcome: Outcome) -> str:
    """Say why it was refused, in a cell of a table."""
    text = " ".join((outcome.refused or "").replace("|", r"\|").split())
    return f"does not run: {text}"


def _spread(outcome: Outcome, name: str) -> str:
    mean = outcome.mean(name)
    if math.isnan(mean):
        return "diverged"
    if len(outcome.records) == 1:
        return f"{mean:.4f}"
    return f"{mean:.4f} ± {outcome.deviation(name):.4f}"
