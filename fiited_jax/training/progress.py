"""Progress on the terminal."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as Remaining

__all__ = ["RichReporter", "SilentReporter"]


class SilentReporter:
    """Tells nobody; see `log.Reporter`."""

    def start(self, num_steps: int) -> None:
        """Do nothing."""

    def log(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class RichReporter:
    """A progress bar with AUC so far, throughput and frames in use."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            Remaining(),
            TextColumn("{task.fields[status]}"),
            console=console,
        )
        self._task = None

    def start(self, num_steps: int) -> None:
        """Show the bar."""
        self._progress.start()
        self._task = self._progress.add_task("train", total=num_steps, status="")

    def log(self, record: dict[str, Any]) -> None:
        """Move the bar."""
        status = (
            f"loss {record['loss']:.4f}  AUC so far {record['auc_so_far']:.4f}  "
            f"{record['examples_per_second']:,.0f} examples/s"
        )
        if "frames_used" in record:
            status += f"  {record['frames_used']:,} frames"
        if self._task is not None:
            self._progress.update(self._task, completed=record["step"], status=status)

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()
