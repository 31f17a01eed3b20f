"""Progress on the terminal, or line by line where there is none."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Column

from .log import Reporter

__all__ = ["BarReporter", "LineReporter", "SilentReporter", "make_reporter"]


def make_reporter(console: Console) -> Reporter:
    """Return a bar for a terminal, lines for a file or a pipe."""
    return BarReporter(console) if console.is_terminal else LineReporter(console)


class SilentReporter:
    """Tells nobody; see `log.Reporter`."""

    def start(self, num_steps: int) -> None:
        """Do nothing."""

    def log(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class BarReporter:
    """A progress bar with AUC so far, throughput and frames in use; 80 columns do."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            Remaining(compact=True),
            TextColumn("{task.fields[status]}", markup=False),  # the bar has the rest
            console=console,
            expand=True,
        )
        self._task = None

    def start(self, num_steps: int) -> None:
        """Show the bar, at its beginning."""
        self._progress.start()
        if self._task is None:
            self._task = self._progress.add_task("train", total=num_steps, status="")
        self._progress.reset(self._task, total=num_steps, status="starting")

    def log(self, record: dict[str, Any]) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(
                self._task, completed=record["step"], status=_status(record)
            )

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


class LineReporter:
    """One plain line per record."""

    def __init__(self, console: Console) -> None:
        """Print to `console`."""
        self._console = console
        self._num_steps = 0

    def start(self, num_steps: int) -> None:
        """Note how many steps there will be."""
        self._num_steps = num_steps

    def log(self, record: dict[str, Any]) -> None:
        """Print a line."""
        line = f"step {record['step']}/{self._num_steps}  {_status(record)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Do nothing."""


def _status(record: dict[str, Any]) -> str:
    parts = [
        f"loss {record['loss']:.4f}",
        f"AUC {record['auc_so_far']:.4f}",
        f"{_short(record['examples_per_second'])} ex/s",
    ]
    if "frames_used" in record:
        parts.append(f"{_short(record['frames_used'])} frames")
    return " ".join(parts)


def _short(count: float) -> str:
    """Write a count with three digits, such as 1.23M.

    >>> [_short(count) for count in (0, 12.3, 999.6, 12345, 999_600, 1_234_567)]
    ['0', '12', '1.00k', '12.3k', '1.00M', '1.23M']
    """
    scaled, suffixes = float(count), " kMGT"
    while round(scaled) >= 1000 and len(suffixes) > 1:
        scaled, suffixes = scaled / 1000, suffixes[1:]
    suffix = suffixes[0].strip()
    if not suffix or scaled >= 99.95:
        return f"{scaled:.0f}{suffix}"
    return f"{scaled:.1f}{suffix}" if scaled >= 9.995 else f"{scaled:.2f}{suffix}"
