"""Whether our method is below a baseline: the first lines of the report."""

import math
from collections.abc import Sequence

from .options import OURS
from .outcome import Outcome

__all__ = ["verdict"]


def verdict(outcomes: Sequence[Outcome]) -> list[str]:
    """Say where `fiited` is below a baseline of the same size, or that it is nowhere.

    Below is a mean AUC that is lower by more than one standard error of the difference
    of means, and a size at which `fiited` does not run or diverges and a baseline does
    not. Method full has no size and is no baseline here, and neither is a method that
    takes more bytes than the size.

    Args:
      outcomes: of the whole comparison; ablations do not count.

    Returns:
      Lines of Markdown.
    """
    outcomes = [outcome for outcome in outcomes if outcome.line.change is None]
    pairs = [
        (ours, other)
        for ours in outcomes
        if ours.line.method == OURS
        for other in outcomes
        if other.line.method != OURS
        and other.line.size == ours.line.size
        and not math.isnan(other.mean("auc"))
        and other.fits_size
    ]
    larger = [
        f"{other.line} (all-in ratio {other.mean('all_in_ratio'):.2f})"
        for other in outcomes
        if not other.fits_size
    ]
    unequal = ["", f"Not at equal bytes, not counted: {', '.join(larger)}."]
    if not pairs:
        return [
            f"`{OURS}` is compared with nothing: there is no size at which it was "
            "asked for and a baseline ran.",
            *(unequal if larger else []),
        ]
    losses = [(ours, loss) for ours, other in pairs if (loss := _loss(ours, other))]
    num_sizes = len({ours.line for ours, _ in pairs})
    by_more = "below a baseline by more than one standard error"
    no_run = any(math.isnan(ours.mean("auc")) for ours, _ in losses)
    by_more += ", or does not run," if no_run else ""
    if losses:
        num_lost = len({ours.line for ours, _ in losses})
        text = [f"`{OURS}` is {by_more} at {num_lost} of {num_sizes} sizes:", ""]
        text += [f"- at {ours.line.size:g}x {loss}" for ours, loss in losses]
    else:
        text = [f"`{OURS}` is nowhere {by_more}; {len(pairs)} compared."]
    missing = [
        str(outcome.line)
        for outcome in outcomes
        if outcome.line.method != OURS
        and (outcome.refused is not None or math.isnan(outcome.mean("auc")))
    ]
    if larger:
        text += unequal
    if missing:
        text += ["", f"Not compared, refused or diverged: {', '.join(missing)}."]
    if any(len(outcome.records) == 1 for pair in pairs for outcome in pair):
        text += ["", "With a single seed there is no error: any difference counts."]
    return text


def _loss(ours: Outcome, other: Outcome) -> str | None:
    """Say how one outcome is below another, `None` if it is not."""
    theirs = f"{other.line.method} has AUC {other.mean('auc'):.5f}"
    if ours.refused is not None:
        return f"it does not run ({ours.refused}), and {theirs}"
    if math.isnan(ours.mean("auc")):
        return f"it diverges, and {theirs}"
    loss = other.mean("auc") - ours.mean("auc")
    error = math.sqrt(ours.variance_of_mean("auc") + other.variance_of_mean("auc"))
    if loss <= error:
        return None
    return (
        f"it has AUC {ours.mean('auc'):.5f}, and {theirs}: "
        f"{loss:.5f} more, standard error {error:.5f}"
    )
