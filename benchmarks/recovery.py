"""The phases of a stream that changes, and who has recovered in them."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "BATCH_SIZE",
    "KINDS",
    "SMOOTHED",
    "TOLERANCE",
    "WINDOW",
    "Setting",
    "judge",
    "of_phases",
    "recovery",
    "smooth",
]

KINDS = ("popularity", "concept")
BATCH_SIZE = 256
WINDOW = 20 * BATCH_SIZE  # examples
TOLERANCE = 0.002
SMOOTHED = 4


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all runs share.

    Attributes:
      compression: dense bytes over all-in bytes.
      phases: windows of the quiet phase, and of the phase after each change.
      seeds: streams, and initial weights.
      rates: learning rates to choose from.
    """

    compression: float
    phases: tuple[int, ...]
    seeds: int
    rates: tuple[float, ...]

    @property
    def changes(self) -> list[int]:
        """Windows before each change."""
        return list(itertools.accumulate(self.phases[:-1]))


def smooth(curve: Sequence[float] | np.ndarray, width: int = SMOOTHED) -> np.ndarray:
    """Return the mean of the last values up to each, fewer at the start.

    >>> smooth([1.0, 3.0, 5.0], 2).tolist()
    [1.0, 2.0, 4.0]
    """
    starts = [max(stop - width, 0) for stop in range(1, len(curve) + 1)]
    return np.array([np.mean(curve[i : n + 1]) for n, i in enumerate(starts)])


def recovery(
    curve: Sequence[float],
    reference: Sequence[float],
    tolerance: float = TOLERANCE,
    width: int = SMOOTHED,
) -> int | None:
    """Return how many windows a method takes to recover.

    Args:
      curve: AUC per window since the change.
      reference: that of a freshly trained full table.
      tolerance: how far below it is near enough.
      width: windows that both are smoothed over.

    Returns:
      Windows before the first from which on the smoothed curve stays near enough; 0 if
      it always is; `None` if it is not at the end.

    >>> recovery([0.6, 0.69, 0.7], [0.7, 0.7, 0.7], width=1, tolerance=0.01)
    1
    """
    gaps = smooth(curve, width) - smooth(reference, width)
    # Rounding does not decide over what is exactly as far as allowed.
    below = np.flatnonzero(gaps < -tolerance - 1e-9)
    after = int(below[-1]) + 1 if len(below) else 0
    return after if after < len(gaps) else None


def judge(
    result: dict[str, Any], fresh: np.ndarray, setting: Setting
) -> dict[str, Any]:
    """Compare with the reference.

    Args:
      result: from `measure`.
      fresh: AUC of the reference, float64[seeds, windows since the first change].
      setting: of all runs.

    Returns:
      Per kind of change: the windows of `recovery`, the `gap` to the reference over the
      last windows of the phase, and the standard deviation of the gap over seeds.
    """
    phases = np.split(np.array(result["auc"]), setting.changes, axis=1)
    told = {}
    for kind, own, reference in zip(
        KINDS, phases[1:], of_phases(fresh, setting), strict=True
    ):
        gaps = (own - reference)[:, -SMOOTHED:].mean(axis=1)
        told[kind] = {
            "recovery": recovery(own.mean(axis=0), reference.mean(axis=0)),
            "gap": float(gaps.mean()),
            "gap_std": float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0,
        }
    return told


def of_phases(fresh: np.ndarray, setting: Setting) -> list[np.ndarray]:
    """Split the curves of the reference, which begin at the first change."""
    return np.split(fresh, np.cumsum(setting.phases[1:-1]), axis=-1)
