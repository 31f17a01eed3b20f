"""The options of `fiited train`."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import optax
import tyro

from ..sizes import parse_bytes
from ..sparse_optim import SparseOptimizer, rowwise_adagrad, sparse

__all__ = ["TrainOptions"]


def _optional(metavar: str) -> Any:
    """Show an option without a default in the help as what it takes, not as None."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a DLRM and prune its embeddings while it trains.

    Attributes:
      data: demo generates a click stream and needs no file; the others read --path.
      path: for criteo and avazu a file in the format of the Kaggle training set; for
        movielens a folder or file of MovieLens-1M; for table any csv or parquet file.
        Text may be gzip compressed.
      schema: for table, a TOML file that names columns, such as label = "clicked",
        ids = ["user", "item"], dense = ["price"], order_by = "hour"; with label_min = 4
        a label from 4 up is a click.
      method: how embeddings are kept; all but fiited are baselines.
      compression: dense bytes over all-in bytes, 10 unless a budget is given. The
        dense table holds the distinct pairs of table and id in the training split and
        the same optimizer. Method full ignores it.
      budget: all-in bytes instead, for example 64MiB.
      embedding_dim: values per full vector.
      chunk_dim: values per chunk, the unit that is pruned.
      scorer: how a batch adds to utilities.
      ranking: lengths makes vectors longer or shorter; chunks ranks each chunk alone.
      length_alpha: how fast more length is worth less, with ranking lengths.
      optimizer: of the embeddings.
      learning_rate: of the embeddings.
      dense_learning_rate: of the MLPs, which Adam trains.
      batch_size: examples per step.
      epochs: passes over the training split.
      prune_interval: steps between prune steps.
      prune_warmup: steps in which that interval grows to its length: an eighth of it in
        the first quarter of the warm-up, then a quarter, and half from its middle on.
      half_life: steps in which an untouched utility halves.
      frames_per_entry: frames of the pool per tracked key. By default 11 % of the
        chunks with ranking lengths, half of them with ranking chunks.
      filter_share: share of the budget for an admission filter, which keeps ids that
        come for the first time from pushing out good ones; 0 for none.
      fallback: what ids read where they have no values: zero, or vectors that they
        share with others, in a part of the budget.
      shared_share: that part, with fallback shared.
      value_dtype: how method fiited stores values; bfloat16 halves their bytes.
      on_full: what happens when the budget does not hold an entry for every id: evict
        the entry of lowest utility, or end the run with an error, at the first log line
        that tells of it. Only for method fiited; the others have no entries.
      seed: of the initial weights and embeddings; the data and their split do not
        depend on it.
      test_fraction: share of the data that is the test split: the last rows, with avazu
        the last days, with movielens random ratings. By default 0.1 for movielens,
        otherwise 0.2.
      log_every: steps between lines of metrics.jsonl and of progress.
      out: folder for config.json, metrics.jsonl, summary.json and plots. Without it
        nothing is written.
    """

    data: Literal["demo", "avazu", "criteo", "movielens", "table"] = "demo"
    path: Annotated[Path | None, _optional("PATH")] = None
    schema: Annotated[Path | None, _optional("PATH")] = None
    method: Literal[
        "cafe", "fiited", "full", "hash", "mixed_dim", "qr", "small_dim"
    ] = "fiited"
    compression: Annotated[float | None, _optional("FLOAT")] = None
    budget: Annotated[str | None, _optional("SIZE")] = None
    embedding_dim: int = 16
    chunk_dim: int = 1
    scorer: Literal["fiited", "frequency", "grad_norm", "saliency"] = "grad_norm"
    ranking: Literal["lengths", "chunks"] = "lengths"
    length_alpha: float = 4.0
    optimizer: Literal["adagrad", "rowwise_adagrad", "sgd"] = "adagrad"
    learning_rate: float = 0.1
    dense_learning_rate: float = 0.002
    batch_size: int = 256
    epochs: int = 1
    prune_interval: int = 50
    prune_warmup: int = 0
    half_life: float = 2000.0
    frames_per_entry: Annotated[float | None, _optional("FLOAT")] = None
    filter_share: float = 0.0
    fallback: Literal["zero", "shared"] = "zero"
    shared_share: float = 0.1
    value_dtype: Literal["float32", "bfloat16"] = "float32"
    on_full: Literal["evict", "error"] = "evict"
    seed: int = 0
    test_fraction: Annotated[float | None, _optional("FLOAT")] = None
    log_every: int = 20
    out: Annotated[Path | None, _optional("PATH")] = None

    def __post_init__(self) -> None:
        """Check what does not depend on the data."""
        if (self.path is None) != (self.data == "demo"):
            raise ValueError(
                "path must be given with every data but demo, and not with it, got "
                f"path={self.path} with data={self.data}"
            )
        if (self.schema is None) != (self.data != "table"):
            raise ValueError(
                "schema must be given with data=table and only then, got "
                f"schema={self.schema} with data={self.data}"
            )
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
        for name in (
            "embedding_dim",
            "chunk_dim",
            "batch_size",
            "epochs",
            "prune_interval",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("learning_rate", "dense_learning_rate", "half_life"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.on_full == "error" and self.method != "fiited":
            raise ValueError(
                "on_full=error must come with method=fiited, the others have no "
                f"entries that run out, got method={self.method}"
            )
        if self.prune_warmup < 0:
            raise ValueError(
                f"prune_warmup must be at least 0, got {self.prune_warmup}"
            )
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")
        if not 0 < self.split_fraction() < 1:
            raise ValueError(
                f"test_fraction must be between 0 and 1, got {self.test_fraction}"
            )
        if self.embedding_dim % self.chunk_dim:
            raise ValueError(
                f"chunk_dim must divide embedding_dim={self.embedding_dim}, "
                f"got {self.chunk_dim}"
            )

    def split_fraction(self) -> float:
        """Return the share of the data that is the test split."""
        if self.test_fraction is None:
            return 0.1 if self.data == "movielens" else 0.2
        return self.test_fraction

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
        return int(dense_bytes / (self.compression or 10.0))
