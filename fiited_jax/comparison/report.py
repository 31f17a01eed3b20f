"""The report of a comparison: a table per size, and plots."""

import dataclasses
from collections.abc import Sequence

from ..data import ClickStream
from ..files import replace_file
from ..training import SharedOptions
from .options import OURS, CompareOptions
from .outcome import Outcome
from .plots import plot_frontier
from .tables import ablation_table, auc_table, size_table
from .verdict import verdict

__all__ = ["report_text", "write_report"]

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
    ablations = [o for o in outcomes if o.line.change is not None]
    outcomes = [o for o in outcomes if o.line.change is None]
    full = next((o for o in outcomes if o.line.size is None), None)
    blocks = [*verdict(outcomes), "", f"# Comparison on {stream.name}", ""]
    blocks += [_protocol(options, stream), ""]
    blocks += ["## AUC", "", *auc_table(outcomes), ""]
    for size in dict.fromkeys(o.line.size for o in outcomes if o is not full):
        rows = [o for o in outcomes if o is full or o.line.size == size]
        blocks += [f"## {size:g}x", "", *size_table(rows, full, options.rates()), ""]
    if ablations:
        blocks += [
            f"## Options of {OURS}, changed one at a time",
            "",
            "At the learning rate of the unchanged method."
            + (
                " After a change of AUC comes its standard error."
                if options.num_seeds() > 1
                else ""
            ),
            "",
            *ablation_table(outcomes, ablations),
            "",
        ]
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
    if changed := _not_default(options):
        text += f"Of options that are not the default: {changed}. "
    if seeds > 1:
        text += f"Mean ± standard deviation of {seeds} seeds on the test split. "
    else:
        text += "One seed, on the test split. "
    if len(rates) > 1:
        others = f"{options.tuning_seeds} other seed"
        others += "s" if options.tuning_seeds > 1 else ""
        text += (
            "Every method chose at every size one of the learning rates "
            f"{', '.join(f'{rate:g}' for rate in rates)}, with {others}, by the mean "
            f"AUC on the last {100 * options.validation_fraction:g} % of the training "
            "split after training on the rest of it; * marks one at an end of that "
            "range. "
        )
    return text + (
        "A ratio is the dense table over the method: all-in counts everything that a "
        "method keeps on the device, optimizer state included, on both sides; values "
        "counts the values of embeddings alone. The numbering of ids that methods with "
        "a row per id need is not counted. A method whose all-in ratio is below the "
        "size is no baseline of that size, as `pep`, which trains more than the dense "
        "table to keep that share of its values. Seeds change the initial weights, not "
        "the order of the data."
    )


def _not_default(options: CompareOptions) -> str:
    """Name what `_protocol` does not tell otherwise."""
    told = {"data", "path", "schema", "embedding_dim", "optimizer", "epochs"}
    return ", ".join(
        f"{field.name}={getattr(options, field.name)}"
        for field in dataclasses.fields(SharedOptions)
        if field.name not in told and getattr(options, field.name) != field.default
    )
