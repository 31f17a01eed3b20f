"""What is told while a comparison goes on."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from .cells import Cell

__all__ = ["CompareProgress"]


class CompareProgress:
    """A line per finished cell; on a terminal a bar with the running one below them.

    It is the `Reporter` of each training run, whose steps show in the bar.

    Args:
      console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._left, self._cell, self._num_steps = 0, "", 0
        self._task = self._progress.add_task("compare", total=0, status="")

    def open(self, num_cells: int) -> None:
        """The comparison begins."""
        self._left = num_cells
        self._progress.update(self._task, total=num_cells)
        self._progress.start()

    def close(self) -> None:
        """The comparison has ended, well or badly."""
        self._progress.stop()

    def begin(self, cell: Cell) -> None:
        """A cell is about to run."""
        self._cell = str(cell)
        self._progress.update(self._task, status=self._cell)

    def finish(self, record: dict[str, Any]) -> None:
        """The cell that began has its result."""
        self._advance(1)
        if "refused" in record:
            text = f"{self._cell}: refused, {record['refused']}"
        else:
            auc = "not finite" if record["auc"] is None else f"{record['auc']:.4f}"
            text = f"{self._cell}: AUC {auc}"
        self._print(f"{text}, {self._left} left")

    def skip(self, num_cells: int, reason: str) -> None:
        """Some cells need not run."""
        if num_cells:
            self._advance(num_cells)
            self._print(f"{num_cells} {reason}, {self._left} left")

    def start(self, num_steps: int) -> None:
        """Training begins."""
        self._num_steps = num_steps

    def log(self, record: dict[str, Any]) -> None:
        """Some steps are done."""
        status = f"{self._cell}, step {record['step']}/{self._num_steps}"
        self._progress.update(self._task, status=status)

    def stop(self) -> None:
        """Training has ended, well or badly."""

    def _advance(self, num_cells: int) -> None:
        self._left -= num_cells
        self._progress.advance(self._task, num_cells)

    def _print(self, line: str) -> None:
        self._progress.console.print(
            line, markup=False, highlight=False, soft_wrap=True
        )
