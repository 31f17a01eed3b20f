"""What the steps of a run tell, gathered into the lines of metrics.jsonl."""

import time
from typing import Any, Protocol

import jax
import numpy as np

from .metrics import AucSoFar
from .steps import StepInfo

__all__ = ["Log", "Reporter"]

_COUNTERS = ("hits", "misses", "admitted", "evicted", "filtered", "failed")


class Reporter(Protocol):
    """Who is told of progress."""

    def start(self, num_steps: int) -> None:
        """Training begins, for a method that restarts a second time."""
        ...

    def log(self, record: dict[str, Any]) -> None:
        """Some steps are done; `record` is one line of metrics.jsonl."""
        ...

    def stop(self) -> None:
        """Training has ended, well or badly."""
        ...


class Log:
    """Gathers what steps tell without waiting for them, until it is flushed.

    Attributes:
      records: lines of metrics.jsonl so far.
      non_finite: chunks or rows left alone for a gradient that was not finite, and
        dense updates skipped for one; since the start, as far as flushed.
    """

    def __init__(self, reporter: Reporter) -> None:
        """Start with nothing gathered; throughput counts from here.

        Args:
          reporter: is told of every record.
        """
        self.records: list[dict[str, Any]] = []
        self.non_finite = {"embeddings": 0, "dense_updates": 0}
        self._reporter = reporter
        self._examples = 0
        self._steps: list[tuple[StepInfo, np.ndarray]] = []
        self._prunes: list[Any] = []
        self._auc = AucSoFar()
        self._started = time.perf_counter()

    def add(self, info: StepInfo, labels: np.ndarray) -> None:
        """Take in a train step.

        Args:
          info: what it told; may still be on its way.
          labels: of its real examples, which come first in the batch.
        """
        self._steps.append((info, labels))
        self._examples += len(labels)

    def add_prune(self, info: Any) -> None:
        """Take in a prune step; it is told with the next record."""
        self._prunes.append(info)

    def examples_per_second(self) -> float:
        """Return the throughput since the start; wait for the steps before."""
        elapsed = time.perf_counter() - self._started
        return self._examples / max(elapsed, 1e-9)

    def flush(self, step: int) -> dict[str, Any] | None:
        """Turn what has been gathered into one record.

        Args:
          step: train steps done.

        Returns:
          The record, the last of `records`; `None` if nothing has been gathered. Its
          `auc` is that of the predictions since the record before.
        """
        if not self._steps:
            return None
        infos, labels = zip(*self._steps, strict=True)
        infos = jax.device_get(infos)
        self._steps = []
        auc = AucSoFar()
        for info, label in zip(infos, labels, strict=True):
            for counted in (auc, self._auc):
                counted.add(label, info.probabilities[: len(label)])
            self.non_finite["embeddings"] += int(info.applied.non_finite)
            self.non_finite["dense_updates"] += int(info.dense_skipped)
        losses, sizes = [info.loss for info in infos], [len(part) for part in labels]
        record: dict[str, Any] = {
            "step": step,
            "examples": self._examples,
            "loss": float(np.average(losses, weights=sizes)),
            "auc": auc.value(),
            "auc_so_far": self._auc.value(),
            "examples_per_second": self.examples_per_second(),
            "non_finite": dict(self.non_finite),
        }
        admitted = [info.admitted for info in infos if info.admitted is not None]
        if admitted:
            for name in _COUNTERS:
                record[name] = int(sum(counts[name] for counts in admitted))
            record["frames_used"] = int(admitted[-1]["frames_used"])
        if self._prunes:  # since the last record
            pruned = jax.device_get(self._prunes)
            record["prune"] = {
                "steps": len(pruned),
                "freed": int(sum(info.freed for info in pruned)),
                "granted": int(sum(info.granted for info in pruned)),
                "threshold": float(pruned[-1].threshold),
                "frames_used": int(pruned[-1].frames_used),
            }
            self._prunes = []
        self.records.append(record)
        self._reporter.log(record)
        return record
