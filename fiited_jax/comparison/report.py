"""The report of a comparison: a table per size, and plots."""

import math
from collections.abc import Sequence

from ..data import ClickStream
from ..files import replace_file
from .options import CompareOptions
from .outcome import Outcome
from .plots import plot_frontier
from .verdict import verdict

__all__ = ["report_text", "write_report"]

_HEAD = (
    "| method | AUC | log loss | gap to full | all-in ratio | values ratio "
    "| learning rate |\n|---|---|---|---|---|---|---|"
)
_PLOTS = {
    "all_in": ("auc_all_in.png", "all-in bytes"),
    "values": ("auc_values.png", "bytes of values alone"),
}


def write_report(
    options: CompareOptions, stream: ClickStream, outcomes: Sequence[Outcome]
) -> None:
    """Write report.md, auc_all_in.png and auc_values.png.

    Args:
      options: of the comparison; files in their `out` are replaced.
      stream: what was trained on.
      outcomes: of all lines.

    Raises:
      OSError: if a file cannot be written.
    """
    for name, (file_name, label) in _PLOTS.items():
        plot_frontier(options.out / file_name, outcomes, f"{name}_bytes", label)
    content = report_text(options, stream, outcomes).encode()
    replace_file(options.out / "report.md", lambda file: file.write(content))


def report_text(
    options: CompareOptions, stream: ClickStream, outcomes: Sequence[Outcome]
) -> str:
    """Return report.md; its first lines tell where `fiited` is below a baseline."""
    full = next((o for o in outcomes if o.line.size is None), None)
    sizes = dict.fromkeys(o.line.size for o in outcomes if o is not full)
    blocks = [*verdict(outcomes), "", f"# Comparison on {stream.name}", ""]
    blocks += [_protocol(options, stream), ""]
    for size in sizes or {None: None}:
        blocks += ["## Without a size" if size is None else f"## {size:g}x", "", _HEAD]
        if full is not None:
            blocks.append(_row(full, full, options))
        blocks += [
            _row(outcome, full, options)
            for outcome in outcomes
            if outcome is not full and outcome.line.size == size
        ]
        blocks.append("")
    for file_name, label in _PLOTS.values():
        blocks.append(f"![AUC against {label}]({file_name})")
    return "\n".join(blocks) + "\n"


def _protocol(options: CompareOptions, stream: ClickStream) -> str:
    """Say how the numbers came about."""
    seeds, rates = options.num_seeds(), options.rates()
    text = (
        f"{stream.num_train:,} training and {stream.num_test:,} test examples, "
        f"embedding_dim {options.embedding_dim}, {options.optimizer}, "
        f"{options.epochs} {'epoch' if options.epochs == 1 else 'epochs'}. "
    )
    if seeds > 1:
        text += f"Mean ± standard deviation of {seeds} seeds on the test split. "
    else:
        text += "One seed, on the test split. "
    if len(rates) > 1:
        text += (
            "Every method chose at every size one of the learning rates "
            f"{', '.join(f'{rate:g}' for rate in rates)}, with one other seed, by the "
            f"AUC on the last {options.validation_fraction:.0%} of the training split "
            "after training on the rest of it; * marks one at an end of that range. "
        )
    return text + (
        "A ratio is the dense table over the method: all-in counts everything that a "
        "method keeps on the device, optimizer state included, on both sides; values "
        "counts the values of embeddings alone. The numbering of ids that methods with "
        "a row per id need is not counted. Seeds change the initial weights, not the "
        "order of the data."
    )


def _row(outcome: Outcome, full: Outcome | None, options: CompareOptions) -> str:
    method = outcome.line.method
    if outcome.refused is not None:
        reason = " ".join(outcome.refused.replace("|", r"\|").split())
        return f"| {method} | does not run: {reason} | | | | | |"
    gap = math.nan if full is None else outcome.mean("auc") - full.mean("auc")
    rates = options.rates()
    at_end = len(rates) > 1 and outcome.rate in (rates[0], rates[-1])
    cells = [
        method,
        _spread(outcome, "auc"),
        _spread(outcome, "log_loss"),
        "-" if math.isnan(gap) or outcome is full else f"{gap:+.4f}",
        f"{outcome.mean('all_in_ratio'):.1f}",
        f"{outcome.mean('values_ratio'):.1f}",
        f"{outcome.rate:g}{'*' if at_end else ''}",
    ]
    return f"| {' | '.join(cells)} |"


def _spread(outcome: Outcome, name: str) -> str:
    mean = outcome.mean(name)
    if math.isnan(mean):
        return "diverged"
    if len(outcome.records) == 1:
        return f"{mean:.4f}"
    return f"{mean:.4f} ± {outcome.deviation(name):.4f}"
