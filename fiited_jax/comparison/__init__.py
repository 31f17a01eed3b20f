"""Comparing methods at equal bytes: `fiited compare`. Needs the `[train]` extra."""

from .options import CompareOptions as CompareOptions
from .outcome import Outcome as Outcome
from .progress import CompareProgress as CompareProgress
from .report import report_text as report_text
from .report import write_report as write_report
from .run import Comparison as Comparison
from .run import open_data as open_data
from .verdict import verdict as verdict

__all__ = [
    "CompareOptions",
    "CompareProgress",
    "Comparison",
    "Outcome",
    "open_data",
    "report_text",
    "verdict",
    "write_report",
]
