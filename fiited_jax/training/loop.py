"""The training loop: passes over a stream, prune steps, the final evaluation."""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from flax import nnx

from .. import scorers
from ..data import ClickStream
from ..memory import MemoryReport, dense_bytes
from ..methods import METHODS, Method, Request
from ..models import DLRM
from .interrupts import interrupts_between_steps
from .metrics import AucSoFar, TestMetrics, test_metrics
from .options import TrainOptions
from .schedule import is_prune_step
from .steps import DeviceBatch, device_batch, evaluate_step, prune_step, train_step

__all__ = ["Reporter", "TrainResult", "Trainer"]

# Dense updates whose gradients are not finite are skipped, however many there are.
_NO_LIMIT = 2**31 - 1


class Reporter(Protocol):
    """Who is told of progress."""

    def start(self, num_steps: int) -> None:
        """Training begins."""
        ...

    def log(self, record: dict[str, Any]) -> None:
        """Some steps are done; `record` is one line of metrics.jsonl."""
        ...

    def stop(self) -> None:
        """Training has ended, well or badly."""
        ...


class TrainResult(NamedTuple):
    """What a run produced.

    Attributes:
      records: lines of metrics.jsonl.
      test: quality on the test split.
      memory: bytes of the embedding state, compared with the dense table.
      prune_temporary_bytes: what a prune step needs beside the state; 0 for a method
        that does not prune.
      non_finite: chunks or rows left alone for a gradient that was not finite, and
        dense updates skipped for one.
      examples_per_second: over all training steps but the first, which compiles.
      state_sha256: of all weights, embeddings and optimizer states.
    """

    records: list[dict[str, Any]]
    test: TestMetrics
    memory: MemoryReport
    prune_temporary_bytes: int
    non_finite: dict[str, int]
    examples_per_second: float
    state_sha256: str


class Trainer:
    """A model, its optimizers and the two jitted functions that train it.

    Attributes:
      method: the embedding method.
      model: the DLRM; its `embed` holds the embedding state.
      num_ids: distinct (table, id) pairs of the training split.
      batch_size: examples per step, no more than there are.
    """

    def __init__(self, options: TrainOptions, stream: ClickStream) -> None:
        """Build everything; allocates the state.

        Raises:
          ValueError: if the budget does not fit the method.
          DataError: if the training split cannot be read.
        """
        self.options, self.stream = options, stream
        self.batch_size = min(options.batch_size, stream.num_train)
        self.optimizer = options.sparse_optimizer()
        vocabulary = stream.vocabulary()
        self.num_ids = vocabulary.num_pairs
        dense = dense_bytes(self.num_ids, options.embedding_dim, self.optimizer)
        self.method: Method = METHODS[options.method](
            Request(
                embedding_dim=options.embedding_dim,
                chunk_dim=options.chunk_dim,
                num_tables=stream.num_tables,
                budget=options.budget_bytes(dense),
                optimizer=self.optimizer,
                vocabulary=vocabulary,
                scorer=scorers.SCORERS[options.scorer](),
                ranking=options.ranking,
                length_alpha=options.length_alpha,
                half_life=options.half_life,
                frames_per_entry=options.frames_per_entry,
            )
        )
        rngs = nnx.Rngs(options.seed)
        embed: Any = self.method.make_embed(rngs)
        self.model = DLRM(
            embed,
            embedding_dim=self.method.embedding_dim,
            num_features=stream.num_tables,
            num_dense=stream.num_dense,
            rngs=rngs,
        )
        transformation = optax.apply_if_finite(
            optax.adam(options.dense_learning_rate), max_consecutive_errors=_NO_LIMIT
        )
        self.dense_optimizer = nnx.Optimizer(self.model, transformation, wrt=nnx.Param)
        self._train_step = nnx.jit(train_step, donate_argnums=(0, 1))
        self._prune_step = nnx.jit(prune_step, donate_argnums=0)
        self._evaluate_step = nnx.jit(evaluate_step)

    def batches(self, split: Any) -> Iterator[tuple[DeviceBatch, int]]:
        """Iterate over full batches and how many of their examples are real."""
        size = self.batch_size
        for batch in self.stream.batches(split, size):
            yield device_batch(batch, size, self.method), len(batch.labels)

    def train(self, reporter: Reporter) -> TrainResult:
        """Train, evaluate and count.

        Args:
          reporter: is told of progress.

        Returns:
          A `TrainResult`.

        Raises:
          DataError: if the data turn out to be unusable on the way.
        """
        options = self.options
        per_epoch = -(-self.stream.num_train // self.batch_size)
        log = _Log(reporter)
        reporter.start(per_epoch * options.epochs)
        step = 0
        with contextlib.ExitStack() as stack:
            stack.callback(reporter.stop)
            check_interrupt = stack.enter_context(interrupts_between_steps())
            for _ in range(options.epochs):
                for batch, num_real in self.batches("train"):
                    check_interrupt()
                    info = self._train_step(self.model, self.dense_optimizer, batch)
                    step += 1
                    log.add(info, batch, num_real)
                    if self.method.prunes and is_prune_step(
                        step, options.prune_interval, options.prune_warmup
                    ):
                        log.pruned.append(self._prune_step(self.model.embed))
                    if step % options.log_every == 0:
                        log.flush(step)
            log.flush(step)
            jax.block_until_ready(nnx.state(self.model))
            speed = log.examples_per_second()
            test = self.evaluate(check_interrupt)
        embed: Any = self.model.embed
        skipped = self.dense_optimizer.opt_state.total_notfinite  # pyright: ignore
        return TrainResult(
            records=log.records,
            test=test,
            memory=embed.memory_report().against_dense(
                self.num_ids, options.embedding_dim, self.optimizer
            ),
            prune_temporary_bytes=embed.prune_temporary_bytes(),
            non_finite={
                "embeddings": log.non_finite,
                "dense_updates": int(skipped.get_value()),
            },
            examples_per_second=speed,
            state_sha256=digest(
                (nnx.state(self.model), nnx.state(self.dense_optimizer))
            ),
        )

    def evaluate(self, between: Callable[[], None] = lambda: None) -> TestMetrics:
        """Score the test split; writes nothing.

        Args:
          between: called before each batch.
        """
        labels, probabilities = [], []
        for batch, num_real in self.batches("test"):
            between()
            labels.append(batch.labels[:num_real])
            predicted = self._evaluate_step(self.model, batch)
            probabilities.append(np.asarray(predicted)[:num_real])
        return test_metrics(np.concatenate(labels), np.concatenate(probabilities))


@dataclasses.dataclass
class _Log:
    """Gathers what steps tell without waiting for them, until it is flushed."""

    reporter: Reporter
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    non_finite: int = 0
    examples: int = 0
    pruned: list[Any] = dataclasses.field(default_factory=list)
    _pending: list[tuple[Any, np.ndarray]] = dataclasses.field(default_factory=list)
    _auc: AucSoFar = dataclasses.field(default_factory=AucSoFar)
    _timed_from: tuple[float, int] | None = None

    def add(self, info: Any, batch: DeviceBatch, num_real: int) -> None:
        if info.admitted is not None:  # lists of evicted keys would add up
            info = info._replace(
                admitted=info.admitted._replace(
                    evicted_keys=None, evicted_tables=None, evicted_mask=None
                )
            )
        self._pending.append((info, batch.labels[:num_real]))
        self.examples += num_real
        if self._timed_from is None:  # the first step compiles: not timed
            jax.block_until_ready(info)
            self._timed_from = (time.perf_counter(), self.examples)

    def examples_per_second(self) -> float:
        if self._timed_from is None:
            return 0.0
        start, before = self._timed_from
        return (self.examples - before) / max(time.perf_counter() - start, 1e-9)

    def flush(self, step: int) -> None:
        """Turn what is pending into one record."""
        if not self._pending:
            return
        infos, labels = zip(*self._pending, strict=True)
        infos = jax.device_get(infos)
        self._pending = []
        for info, label in zip(infos, labels, strict=True):
            self._auc.add(label, info.probabilities[: len(label)])
            self.non_finite += int(info.applied.non_finite)
        losses, sizes = [info.loss for info in infos], [len(part) for part in labels]
        record: dict[str, Any] = {
            "step": step,
            "examples": self.examples,
            "loss": float(np.average(losses, weights=sizes)),
            "auc_so_far": self._auc.value(),
            "examples_per_second": self.examples_per_second(),
            "non_finite": self.non_finite,
        }
        admitted = [info.admitted for info in infos if info.admitted is not None]
        if admitted:
            for name in ("hits", "misses", "admitted", "evicted", "failed"):
                record[name] = int(sum(getattr(info, name) for info in admitted))
            record["frames_used"] = int(admitted[-1].frames_used)
        if self.pruned:  # since the last record
            pruned = jax.device_get(self.pruned)
            record["prune"] = {
                "steps": len(pruned),
                "freed": int(sum(info.freed for info in pruned)),
                "granted": int(sum(info.granted for info in pruned)),
                "threshold": float(pruned[-1].threshold),
                "frames_used": int(pruned[-1].frames_used),
            }
            self.pruned = []
        self.records.append(record)
        self.reporter.log(record)


def digest(tree: Any) -> str:
    """Hash the paths, shapes, dtypes and bytes of all leaves."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path)
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
