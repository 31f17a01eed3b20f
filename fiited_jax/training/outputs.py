"""What a run leaves behind: JSON files, plots and the table at the end."""

import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..data import BayesReference
from ..files import replace_file
from .loop import TrainResult
from .options import TrainOptions
from .plots import plot_auc, plot_bytes

__all__ = ["check_writable", "print_summary", "summarize", "write_outputs"]


def summarize(result: TrainResult, bayes: BayesReference | None) -> dict[str, Any]:
    """Return the content of summary.json.

    Args:
      result: of a run.
      bayes: what a perfect model reaches, where it is known.
    """
    memory = result.memory
    summary: dict[str, Any] = {
        "auc": result.test.auc,
        "log_loss": result.test.log_loss,
        "normalized_entropy": result.test.normalized_entropy,
        "all_in_bytes": memory.all_in_bytes,
        "dense_bytes": memory.dense_bytes,
        "all_in_ratio": memory.all_in_ratio,
        "values_ratio": memory.values_ratio,
        "bytes": memory.components,
        "bytes_per_entry": memory.bytes_per_entry,
        "metadata_share": memory.metadata_share,
        "prune_temporary_bytes": result.prune_temporary_bytes,
        "non_finite": result.non_finite,
        "examples_per_second": result.examples_per_second,
        "state_sha256": result.state_sha256,
    }
    if memory.tables:
        summary["tables"] = [dataclasses.asdict(use) for use in memory.tables]
    if bayes is not None:
        summary["bayes_auc"], summary["bayes_log_loss"] = bayes
    return summary


def check_writable(folder: Path) -> None:
    """Make the folder and see that a file can be written in it.

    Raises:
      OSError: if not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_outputs(
    folder: Path,
    options: TrainOptions,
    result: TrainResult,
    summary: dict[str, Any],
) -> None:
    """Write config.json, metrics.jsonl, summary.json, auc.png and bytes.png.

    Args:
      folder: made if it is not there; files in it are replaced.
      options: of the run.
      result: of the run.
      summary: from `summarize`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(options).items()
    }
    texts = {"config.json": _json(plain, indent=2)}
    texts["metrics.jsonl"] = "".join(map(_json, result.records))
    plot_auc(folder / "auc.png", result.records, summary)
    plot_bytes(folder / "bytes.png", result.memory)
    texts["summary.json"] = _json(summary, indent=2)
    for name, text in texts.items():
        content = text.encode()
        replace_file(folder / name, lambda file, content=content: file.write(content))


def print_summary(console: Console, options: TrainOptions, summary: dict) -> None:
    """Print the table at the end of a run."""
    table = Table(title=f"{options.method} on {options.data}, test split")
    table.add_column("metric")
    table.add_column("value", justify="right")
    rows = [
        ("AUC", f"{summary['auc']:.5f}"),
        ("log loss", f"{summary['log_loss']:.5f}"),
        ("normalized entropy", f"{summary['normalized_entropy']:.5f}"),
    ]
    if "bayes_auc" in summary:
        rows.append(("AUC of the true model", f"{summary['bayes_auc']:.5f}"))
        rows.append(("log loss of the true model", f"{summary['bayes_log_loss']:.5f}"))
    rows += [
        ("all-in bytes", f"{summary['all_in_bytes']:,}"),
        ("dense bytes", f"{summary['dense_bytes']:,}"),
        ("compression, all-in", f"{summary['all_in_ratio']:.2f}"),
        ("compression, values only", f"{summary['values_ratio']:.2f}"),
        *((f"  {name}", f"{size:,}") for name, size in summary["bytes"].items()),
        ("share of metadata", f"{summary['metadata_share']:.1%}"),
        ("prune step temporaries", _count(summary["prune_temporary_bytes"])),
        ("examples per second", f"{summary['examples_per_second']:,.0f}"),
    ]
    if summary["bytes_per_entry"] is not None:
        rows.append(("bytes per entry", f"{summary['bytes_per_entry']:g}"))
    if any(summary["non_finite"].values()):
        counts = summary["non_finite"]
        rows.append(("non-finite gradients, embeddings", f"{counts['embeddings']:,}"))
        rows.append(("non-finite gradients, dense", f"{counts['dense_updates']:,}"))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _count(value: int | None) -> str:
    return "not reported" if value is None else f"{value:,}"


def _json(value: Any, indent: int | None = None) -> str:
    """Format as JSON, which has no NaN and no infinity: null stands for them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        is_number = not isinstance(value, float) or math.isfinite(value)
        return value if is_number else None

    return json.dumps(plain(value), indent=indent, allow_nan=False) + "\n"
