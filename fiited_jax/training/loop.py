"""The training loop: passes over a stream, prune steps, the final evaluation."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from .. import scorers
from ..data import Batch, ClickStream
from ..memory import MemoryReport, dense_bytes
from ..methods import METHODS, Method, Request
from ..models import DLRM
from .interrupts import interrupts_between_steps
from .log import Log, Reporter
from .metrics import TestMetrics, test_metrics
from .options import TrainOptions
from .room import check_room
from .schedule import is_prune_step
from .steps import DeviceBatch, device_batch, evaluate_step, prune_step, train_step

__all__ = ["TrainResult", "Trainer"]

# Dense updates whose gradients are not finite are skipped, however many there are.
_NO_LIMIT = 2**31 - 1


class TrainResult(NamedTuple):
    """What a run produced.

    Attributes:
      records: lines of metrics.jsonl; of a method that restarts, those since then.
      test: quality on the test split.
      memory: bytes of the embedding state, compared with the dense table.
      prune_temporary_bytes: what a prune step needs beside the state; 0 for a method
        that does not prune, `None` on a backend that does not report it.
      non_finite: chunks or rows left alone for a gradient that was not finite, and
        dense updates skipped for one, since a restart.
      examples_per_second: over all train and prune steps since a restart, and the
        reading of their data; compilation is not timed.
      state_sha256: of all weights, embeddings and optimizer states.
    """

    records: list[dict[str, Any]]
    test: TestMetrics
    memory: MemoryReport
    prune_temporary_bytes: int | None
    non_finite: dict[str, int]
    examples_per_second: float
    state_sha256: str


class _Steps(NamedTuple):
    """The compiled train step and prune step."""

    train: Any
    prune: Any


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

        Reads the test split once, so that a bad row in it is met before the training
        and not after it.

        Raises:
          ValueError: if the budget does not fit the method.
          DataError: if a split cannot be read.
        """
        self.options, self.stream = options, stream
        self.batch_size = min(options.batch_size, stream.num_train)
        self.optimizer = options.sparse_optimizer()
        for _ in stream.batches("test", self.batch_size):
            pass
        vocabulary = stream.vocabulary()
        self.num_ids = vocabulary.num_pairs
        num_lookups = stream.num_train * stream.num_tables
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
                filter_share=options.filter_share,
                fallback=options.fallback,
                coarse_step=options.learning_rate / 2,
                lookups_per_id=num_lookups / max(self.num_ids, 1),
                shared_share=options.shared_share,
                value_dtype=options.value_dtype,
                page_table=options.page_table,
            )
        )
        self._transformation = optax.apply_if_finite(
            optax.adam(options.dense_learning_rate), max_consecutive_errors=_NO_LIMIT
        )
        self._rngs = nnx.Rngs(options.seed)
        embed = self.method.make_embed(self._rngs)
        self.model, self.dense_optimizer = self._build(embed)
        self._train_step = nnx.jit(train_step, donate_argnums=(0, 1))
        self._prune_step = nnx.jit(prune_step, donate_argnums=0)
        self._evaluate_step = nnx.jit(evaluate_step)

    def _build(self, embed: Any) -> tuple[DLRM, nnx.Optimizer]:
        """Build model and optimizer around embeddings; at every call the same."""
        model = DLRM(
            embed,
            embedding_dim=self.method.embedding_dim,
            num_features=self.stream.num_tables,
            num_dense=self.stream.num_dense,
            rngs=nnx.clone(self._rngs),
        )
        return model, nnx.Optimizer(model, self._transformation, wrt=nnx.Param)

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
          StoreFullError: with `on_full="error"`, at the first log line whose steps
            evicted keys or had lookups without an entry.
        """
        restart = self.method.restart
        per_epoch = -(-self.stream.num_train // self.batch_size)
        num_steps = per_epoch * self.options.epochs
        reporter.start(num_steps)
        with contextlib.ExitStack() as stack:
            stack.callback(reporter.stop)
            check_interrupt = stack.enter_context(interrupts_between_steps())
            steps = self._compile()
            if restart is not None:
                self._run_epochs(steps, Log(reporter), check_interrupt)
                nnx.jit(restart, donate_argnums=0)(self.model.embed)
                self.model, self.dense_optimizer = self._build(self.model.embed)
                jax.block_until_ready(nnx.state(self.model))  # before the clock runs
                reporter.start(num_steps)
            log = Log(reporter)
            self._run_epochs(steps, log, check_interrupt)
            jax.block_until_ready(nnx.state(self.model))
            speed = log.examples_per_second()
            test = self.evaluate(check_interrupt)
        embed: Any = self.model.embed
        temporary = _temporary_bytes(steps.prune) if self.method.prunes else 0
        return TrainResult(
            records=log.records,
            test=test,
            memory=embed.memory_report().against_dense(
                self.num_ids, self.options.embedding_dim, self.optimizer
            ),
            prune_temporary_bytes=temporary,
            non_finite=log.non_finite,
            examples_per_second=speed,
            state_sha256=digest(
                (nnx.state(self.model), nnx.state(self.dense_optimizer))
            ),
        )

    def _run_epochs(
        self, steps: _Steps, log: Log, check_interrupt: Callable[[], None]
    ) -> None:
        """Train, from the state that model and optimizer have."""
        options, step = self.options, 0
        for _ in range(options.epochs):
            for batch, num_real in self.batches("train"):
                check_interrupt()
                info = steps.train(self.model, self.dense_optimizer, batch)
                step += 1
                log.add(info, batch.labels[:num_real])
                if self.method.prunes and is_prune_step(
                    step, options.prune_interval, options.prune_warmup
                ):
                    log.add_prune(steps.prune(self.model.embed))
                if step % options.log_every == 0:
                    self._flush(log, step)
        self._flush(log, step)

    def _compile(self) -> _Steps:
        """Compile the train step and the prune step, so that neither is timed."""
        nothing = Batch(
            np.zeros(0, np.float32),
            np.zeros((0, self.stream.num_dense), np.float32),
            np.zeros((0, self.stream.num_tables), np.int64),
        )
        batch = device_batch(nothing, self.batch_size, self.method)
        lowered = self._train_step.lower(self.model, self.dense_optimizer, batch)
        if not self.method.prunes:
            return _Steps(lowered.compile(), self._prune_step)
        prune_step = self._prune_step.lower(self.model.embed).compile()
        return _Steps(lowered.compile(), prune_step)

    def _flush(self, log: Log, step: int) -> None:
        record = log.flush(step)
        if record is not None and self.options.on_full == "error":
            check_room(record, self.num_ids)

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


def _temporary_bytes(step: Any) -> int | None:
    """Return what a step needs beside its state, as `nnx.jit` has compiled it."""
    analysis = step.compiled.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes


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
