"""Plots of a run."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..files import replace_file
from ..memory import MemoryReport

__all__ = ["plot_auc", "plot_bytes"]


def plot_auc(
    path: Path, records: list[dict[str, Any]], summary: dict[str, Any]
) -> None:
    """Plot the AUC so far over steps, with the test AUC and the Bayes AUC.

    Args:
      path: a PNG file to write or replace.
      records: lines of metrics.jsonl.
      summary: of summary.json.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [record["step"] for record in records]
    so_far = [record["auc_so_far"] for record in records]
    axes.plot(steps, so_far, label="so far, before each update")
    lines = [("auc", "test split", "C1")]
    if "bayes_auc" in summary:
        lines.append(("bayes_auc", "true model, test split", "C2"))
    for name, label, color in lines:
        text = f"{label}: {summary[name]:.4f}"
        axes.axhline(summary[name], linestyle="--", color=color, label=text)
    axes.set_xlabel("step")
    axes.set_ylabel("AUC")
    axes.grid(alpha=0.3)
    axes.legend()
    _write(figure, path)


def plot_bytes(path: Path, memory: MemoryReport) -> None:
    """Plot the bytes of the embedding state by component.

    Args:
      path: a PNG file to write or replace.
      memory: what was counted.
    """
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    parts = {name: size for name, size in memory.components.items() if size}
    bars = axes.barh(list(parts), [size / 2**20 for size in parts.values()])
    shares = [f"{size / memory.all_in_bytes:.1%}" for size in parts.values()]
    axes.bar_label(bars, shares, padding=3)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel("MiB")
    axes.set_title(
        f"{memory.all_in_bytes / 2**20:.2f} MiB all-in, "
        f"dense table {(memory.dense_bytes or 0) / 2**20:.2f} MiB"
    )
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    replace_file(path, lambda file: figure.savefig(file, format="png", dpi=150))
