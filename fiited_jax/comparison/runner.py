"""The training run behind a cell."""

import gc
import math
import time
from typing import Any, Protocol

import jax

from ..checks import BudgetError
from ..data import ClickStream
from ..training import Trainer, summarize
from ..training.log import Reporter
from .cells import Cell

__all__ = ["Runner", "TrainerRunner"]

_METRICS = ("auc", "log_loss", "normalized_entropy")
_SIZES = ("all_in_bytes", "dense_bytes", "all_in_ratio", "values_ratio")


class Runner(Protocol):
    """Who runs cells."""

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """Run a cell and return its result, plain values.

        Returns:
          With `refused`, the reason, if the method does not come at this size; else
          with `auc`, `log_loss`, `all_in_bytes`, `values_bytes`, `all_in_ratio` and
          `values_ratio`.
        """
        ...


class TrainerRunner:
    """Runs cells in this process, one after another.

    Args:
      stream: What final cells are trained and scored on.
      validation: What tuning cells are trained and scored on.
      reporter: Is told of the progress of each.
    """

    def __init__(
        self, stream: ClickStream, validation: ClickStream, reporter: Reporter
    ) -> None:
        self._streams = {"final": stream, "tuning": validation}
        self._reporter = reporter
        self._method = ""

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """Run a cell; see `Runner`.

        Raises:
          DataError: if the data cannot be read.
        """
        # The memory maps of compiled code are limited; some stay behind with every run.
        if cell.options.method != self._method:
            self._method = cell.options.method
            jax.clear_caches()
        started = time.perf_counter()
        try:
            result = self._train(cell)
        finally:
            gc.collect()  # compiled code is held by cycles
        return {**result, "seconds": round(time.perf_counter() - started, 2)}

    def _train(self, cell: Cell) -> dict[str, Any]:
        try:
            trainer = Trainer(cell.options, self._streams[cell.kind])
        except BudgetError as error:
            return {"refused": str(error)}
        result = trainer.train(self._reporter)
        summary = summarize(result, None)
        kept = {name: summary[name] for name in (*_METRICS, *_SIZES)}
        for name in _METRICS:
            if not math.isfinite(kept[name]):
                kept[name] = None
        return {
            **kept,
            "values_bytes": result.memory.kept_values,
            "examples_per_second": result.examples_per_second,
            "state_sha256": result.state_sha256,
        }
