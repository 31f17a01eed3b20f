"""Plots of a comparison."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..files import replace_file
from .outcome import Outcome

__all__ = ["plot_frontier"]


def plot_frontier(
    path: Path, outcomes: Sequence[Outcome], name: str, label: str
) -> None:
    """Plot the AUC against bytes: a line per method, error bars of one deviation.

    Args:
      path: a PNG file to write or replace.
      outcomes: of all lines; ablations and those without an AUC are left out.
      name: of the bytes in the results.
      label: what they are.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    known = [
        outcome
        for outcome in outcomes
        if outcome.line.change is None and not math.isnan(outcome.mean("auc"))
    ]
    for number, method in enumerate(dict.fromkeys(o.line.method for o in known)):
        points = sorted(
            (o.mean(name) / 2**20, o.mean("auc"), o.deviation("auc"))
            for o in known
            if o.line.method == method
        )
        sizes, means, deviations = zip(*points, strict=True)
        color, marker = f"C{number}", "osD^vPX*<>hd"[number % 12]
        axes.errorbar(
            sizes,
            means,
            yerr=deviations,
            capsize=3,
            color=color,
            linestyle="-" if number < 10 else "-.",  # there are ten colors
            marker=marker,
            label=method,
        )
        if method == "full":
            axes.axhline(means[0], linestyle="--", linewidth=0.8, color=color)
    axes.set_xlabel(f"{label}, MiB")
    axes.set_ylabel("AUC, test split")
    axes.grid(alpha=0.3, which="both")
    if known:
        axes.legend()
    replace_file(path, lambda file: figure.savefig(file, format="png", dpi=150))
