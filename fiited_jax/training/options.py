"""The options of `fiited train`."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import optax

from ..checks import check_int
from ..sizes import parse_bytes
from ..sparse_optim import SparseOptimizer, rowwise_adagrad, sparse
from .shared_options import SharedOptions, optional

__all__ = ["TrainOptions"]


@dataclasses.dataclass(frozen=True)
class TrainOptions(SharedOptions):
    """Train a DLRM and prune its embeddings while it trains.

    Attributes:
      method: how embeddings are kept; all but fiited are baselines.
      compression: dense bytes over all-in bytes, 10 unless a budget is given. The
        dense table holds the distinct pairs of table and id in the training split and
        the same optimizer. Method full ignores it; method pep keeps that share of the
        values, and holds more than the dense table while it trains.
      budget: all-in bytes instead, for example 64MiB.
      learning_rate: of the embeddings.
      on_full: what happens when the budget does not hold an entry for every id: evict
        the entry of lowest utility, or end the run with an error, at the first log line
        that tells of it. Only for method fiited.
      seed: of the initial weights and embeddings; the data and their split do not
        depend on it.
      log_every: steps between lines of metrics.jsonl and of progress.
      out: folder for config.json, metrics.jsonl, summary.json and plots. Without it
        nothing is written.
    """

    method: Literal[
        "adaembed",
        "cafe",
        "fiited",
        "fiited_paper",
        "full",
        "hash",
        "itep",
        "mixed_dim",
        "pep",
        "qr",
        "small_dim",
    ] = "fiited"
    compression: Annotated[float | None, optional("FLOAT")] = None
    budget: Annotated[str | None, optional("SIZE")] = None
    learning_rate: float = 0.1
    on_full: Literal["evict", "error"] = "evict"
    seed: int = 0
    log_every: int = 20
    out: Annotated[Path | None, optional("PATH")] = None

    def __post_init__(self) -> None:
        """Check what does not depend on the data."""
        super().__post_init__()
        if self.budget is not None and self.compression is not None:
            raise ValueError(
                "budget and compression exclude each other, got "
                f"{self.budget} and {self.compression}"
            )
        if self.budget is not None:
            parse_bytes(self.budget)
        if self.compression is not None and not 1e-3 <= self.compression <= 1e9:
            raise ValueError(
                f"compression must be from 0.001 to 1e9, got {self.compression}"
            )
        check_int("log_every", self.log_every, 1)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate must be positive, got {self.learning_rate}"
            )
        if self.on_full == "error" and self.method != "fiited":
            raise ValueError(
                f"on_full=error must come with method=fiited, got method={self.method}"
            )
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")

    def sparse_optimizer(self) -> SparseOptimizer:
        """Return the optimizer of the embeddings."""
        rate = self.learning_rate
        if self.optimizer == "rowwise_adagrad":
            return rowwise_adagrad(rate)
        if self.optimizer == "sgd":
            return sparse(optax.sgd(rate))
        # Gradients of a mean loss are small: optax's start of 0.1 would drown them, and
        # from 0 the first gradient of a rare id would move it by the whole rate.
        adagrad = optax.adagrad(rate, initial_accumulator_value=1e-6, eps=1e-10)
        return sparse(adagrad)

    def budget_bytes(self, dense_bytes: int) -> int | None:
        """Return the all-in budget, `None` for a method without one.

        Args:
          dense_bytes: of the dense table to compress.
        """
        if self.method == "full":
            return None
        if self.budget is not None:
            return parse_bytes(self.budget)
        return max(int(dense_bytes / (self.compression or 10.0)), 1)
