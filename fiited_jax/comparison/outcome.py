"""What came of a method at a size."""

import math
import statistics
from typing import Any, NamedTuple

from .cells import Line

__all__ = ["Outcome"]

_ROUNDING = 1e-9


class Outcome(NamedTuple):
    """The reported runs of a line, or why there are none.

    Attributes:
      line: method and size.
      rate: the learning rate chosen; `None` if the method was refused before.
      records: results of the reported runs, one per seed; empty if refused.
      refused: why the method does not come at this size, `None` if it does.
    """

    line: Line
    rate: float | None
    records: tuple[dict[str, Any], ...]
    refused: str | None = None

    @property
    def fits_size(self) -> bool:
        """Whether the all-in bytes are within the size, or there is none."""
        ratio = self.mean("all_in_ratio")
        return self.line.size is None or not ratio < self.line.size * (1 - _ROUNDING)

    def mean(self, name: str) -> float:
        """Return the mean over seeds; NaN if a run has diverged or there is none."""
        values = [record[name] for record in self.records]
        return statistics.fmean(values) if values and None not in values else math.nan

    def deviation(self, name: str) -> float:
        """Return the sample standard deviation over seeds, 0 for a single seed."""
        values = [record[name] for record in self.records]
        if not values or None in values:
            return math.nan
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def variance_of_mean(self, name: str) -> float:
        """Return the square of the standard error of the mean; 0 for a single seed."""
        return self.deviation(name) ** 2 / max(len(self.records), 1)
