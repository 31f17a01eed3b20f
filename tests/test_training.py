"""The main job on small data: runs, determinism, metrics, non-finite gradients."""

import json
import math
import os
import signal
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fiited_jax import training
from fiited_jax.data import Batch, DemoStream
from fiited_jax.models import DLRM
from fiited_jax.training import loop, metrics
from fiited_jax.training.interrupts import interrupts_between_steps
from fiited_jax.training.log import Log
from fiited_jax.training.steps import StepInfo, device_batch

# All methods keep the contract; these are trained too, stores by other rules are not.
TRAINED = ("cafe", "fiited", "full", "hash")
ALSO_TRAINED = ("mixed_dim", "qr", "small_dim")


def small(**fields):
    return training.TrainOptions(
        **{
            "batch_size": 128,
            "compression": 4.0,
            "log_every": 5,
            "prune_interval": 5,
            **fields,
        }
    )


@pytest.fixture(scope="module")
def stream():
    return DemoStream(2000, 500)


def run(options, stream):
    trainer = training.Trainer(options, stream)
    return trainer, trainer.train(training.SilentReporter())


def gather_infos(monkeypatch):
    """Return a list that will get what every train step tells."""
    infos, add = [], loop.Log.add

    def gather(self, info, labels):
        infos.append(info)
        add(self, info, labels)

    monkeypatch.setattr(loop.Log, "add", gather)
    return infos


@pytest.mark.parametrize(
    "method",
    [
        *TRAINED,
        *(pytest.param(name, marks=pytest.mark.slow) for name in ALSO_TRAINED),
    ],
)
def test_every_method_trains_within_its_budget(method, stream, monkeypatch):
    chex.clear_trace_counter()
    for name in ("train_step", "prune_step", "evaluate_step"):
        once = chex.assert_max_traces(getattr(loop, name), n=1)
        monkeypatch.setattr(loop, name, once)
    infos = gather_infos(monkeypatch)
    trainer, result = run(small(method=method), stream)
    shapes = [leaf.shape for leaf in jax.tree.leaves(infos[0])]
    assert [shape for shape in shapes if shape] == [(128,)]  # the probabilities
    live = jax.tree.leaves(trainer.model.embed.state.get_value())
    assert sum(leaf.nbytes for leaf in live) == result.memory.all_in_bytes
    if method != "full":
        assert result.memory.all_in_ratio >= 4.0
    assert result.records[-1]["examples"] == 2000
    assert math.isfinite(result.test.log_loss)
    assert result.non_finite == {"embeddings": 0, "dense_updates": 0}
    if method == "fiited":
        trainer.model.embed.store.check_invariants(
            trainer.model.embed.state.get_value()
        )
        assert any("prune" in record for record in result.records)
        assert result.prune_temporary_bytes > 0


class Listener(training.SilentReporter):
    """Keeps what it is told; may interrupt as soon as that is something."""

    def __init__(self, interrupt_after=None):
        self.told, self._interrupt_after = [], interrupt_after

    def start(self, num_steps):
        self.told.append(f"of {num_steps}")

    def log(self, record):
        self.told.append(record["step"])
        if self.told == self._interrupt_after:
            os.kill(os.getpid(), signal.SIGINT)

    def stop(self):
        self.told.append("stop")


def test_after_a_restart_training_begins_anew(stream, monkeypatch):
    step = chex.assert_max_traces(loop.train_step, n=1)
    monkeypatch.setattr(loop, "train_step", step)
    trainer = training.Trainer(small(method="pep", log_every=9), stream)
    started, run_epochs = [], trainer._run_epochs

    def note(*args):
        dense = nnx.state(trainer.model, nnx.Param), nnx.state(trainer.dense_optimizer)
        started.append((loop.digest(dense), trainer.model.embed.memory_report()))
        run_epochs(*args)

    monkeypatch.setattr(trainer, "_run_epochs", note)
    listener = Listener()
    result = trainer.train(listener)
    assert listener.told == ["of 16", 9, 16, "of 16", 9, 16, "stop"]
    assert [record["step"] for record in result.records] == [9, 16]
    assert result.records[-1]["examples"] == 2000
    (before, all_values), (after, kept) = started
    assert before == after
    assert all_values.kept_values > 0.99 * 4 * 16 * trainer.num_ids
    assert result.memory.kept_values == kept.kept_values
    assert result.memory.values_ratio >= 4 > 1 > result.memory.all_in_ratio
    live = jax.tree.leaves(trainer.model.embed.state.get_value())
    assert sum(leaf.nbytes for leaf in live) == result.memory.all_in_bytes
    # The test split is scored with the kept values, in the model trained with them.
    assert trainer.evaluate() == result.test
    assert trainer.model.embed.state.get_value().is_fixed


def test_an_interrupt_ends_the_training_after_a_restart():
    trainer = training.Trainer(small(method="pep"), DemoStream(1000, 50))
    told = ["of 8", 5, 8, "of 8", 5]
    listener = Listener(interrupt_after=told)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(listener)
    assert listener.told == [*told, "stop"]


def test_options_of_the_store_reach_it(stream):
    fields = {
        "value_dtype": "bfloat16",
        "fallback": "shared",
        "ranking": "chunks",
        "chunk_dim": 4,
        "half_life": 77.0,
    }
    options = small(filter_share=0.1, shared_share=0.3, **fields)
    embed = training.Trainer(options, stream).model.embed
    for name, value in fields.items():
        assert getattr(embed.store.config, name) == value
    report = embed.memory_report()
    shares = np.array([report.filter, report.shared]) / report.all_in_bytes
    np.testing.assert_allclose(shares, [0.1, 0.3], atol=0.01)


def test_coarse_values_follow_the_learning_rate_and_the_data(stream):
    def config(**fields):
        options = small(optimizer="adagrad", learning_rate=0.1, **fields)
        return training.Trainer(options, stream).model.embed.store.config

    asked = config(fallback="coarse")
    assert (asked.fallback, asked.coarse_step) == ("coarse", 0.05)
    lookups = stream.num_train * stream.num_tables / stream.vocabulary().num_pairs
    assert lookups < 50
    assert config(compression=4.0).fallback == "coarse"
    assert config(compression=4.0, page_table="hashed").fallback == "zero"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_state(stream):
    digests = [run(small(seed=seed), stream)[1].state_sha256 for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


class Poisoned(DemoStream):
    """A stream of which some dense features are not finite."""

    def batches(self, split, batch_size):
        for number, batch in enumerate(super().batches(split, batch_size)):
            dense = batch.dense.copy()
            if split == "train" and number == 2:
                dense[0, 0] = np.nan
            if split == "train" and number == 4:
                dense[1, 3] = np.inf
            yield Batch(batch.labels, dense, batch.ids)


@pytest.mark.parametrize("method", TRAINED)
def test_non_finite_gradients_leave_everything_usable(method):
    trainer, result = run(small(method=method), Poisoned(2000, 500))
    assert result.non_finite["dense_updates"] == 2
    assert result.non_finite["embeddings"] >= 2 * 26
    told = [record["non_finite"] for record in result.records]
    assert told[0]["dense_updates"] == 2  # of the first five steps
    assert told[-1] == result.non_finite
    assert math.isfinite(result.test.auc)
    for leaf in jax.tree.leaves(trainer.model.embed.state.get_value()):
        assert np.all(np.isfinite(np.asarray(leaf)))


def test_evaluation_writes_nothing(stream):
    trainer, _ = run(small(), stream)
    before = loop.digest(trainer.model.embed.state.get_value())
    trainer.evaluate()
    assert loop.digest(trainer.model.embed.state.get_value()) == before


def test_examples_that_fill_a_batch_up_do_not_count(stream):
    outcomes = []
    for size in (100, 128):
        trainer = training.Trainer(small(method="full"), stream)
        (batch,) = [next(stream.batches("train", 100))]
        step = nnx.jit(loop.train_step)
        whole = device_batch(batch, size, trainer.method)
        info = step(trainer.model, trainer.dense_optimizer, whole)
        outcomes.append((float(info.loss), int(info.applied.updated)))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-5)
    assert outcomes[0][1] == outcomes[1][1]


@pytest.mark.parametrize("seed", range(20))
def test_a_narrow_model_still_sees_the_dense_features(seed):
    rngs = nnx.Rngs(seed)
    model = DLRM(nnx.Module(), embedding_dim=1, num_features=3, num_dense=13, rngs=rngs)
    dense = jax.random.normal(jax.random.key(seed), (64, 13))
    logits = model.logits(dense, jnp.zeros((64, 3, 1)))
    assert len(np.unique(logits)) == 64  # a dead unit gives all of them one logit


def test_metrics_by_hand():
    labels = np.array([0, 0, 1, 1, 1])
    probabilities = np.array([0.1, 0.6, 0.6, 0.9, 0.05])
    got = metrics.test_metrics(labels, probabilities)
    assert got.auc == pytest.approx((1 + 2 + 0.5 + 0) / 6)
    losses = [
        math.log(0.9),
        math.log(0.4),
        math.log(0.6),
        math.log(0.9),
        math.log(0.05),
    ]
    assert got.log_loss == pytest.approx(-sum(losses) / 5)
    entropy = -(0.6 * math.log(0.6) + 0.4 * math.log(0.4))
    assert got.normalized_entropy == pytest.approx(got.log_loss / entropy)
    so_far = metrics.AucSoFar()
    so_far.add(labels[:2], probabilities[:2])
    assert math.isnan(so_far.value())
    so_far.add(labels[2:], probabilities[2:])
    so_far.add(np.array([1]), np.array([np.nan]))
    assert so_far.value() == pytest.approx(got.auc)


def test_auc_so_far_is_close_to_the_exact_one():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 20_000)
    probabilities = 1 / (1 + np.exp(-rng.normal(size=20_000) - labels))
    so_far = metrics.AucSoFar()
    for part in np.array_split(np.arange(20_000), 7):
        so_far.add(labels[part], probabilities[part])
    exact = metrics.test_metrics(labels, probabilities).auc
    assert so_far.value() == pytest.approx(exact, abs=1e-4)


def test_a_record_tells_the_auc_since_the_one_before():
    rng = np.random.default_rng(0)
    log = Log(training.SilentReporter())
    for step in range(1, 5):
        labels, predicted = rng.integers(0, 2, 9), rng.random(10)  # the tenth fills up
        applied = SimpleNamespace(non_finite=0)
        log.add(StepInfo(0.5, predicted, None, applied, 0), labels)
        exact = metrics.test_metrics(labels, predicted[:9]).auc
        assert log.flush(step)["auc"] == pytest.approx(exact)
        if step > 1:
            assert log.records[-1]["auc_so_far"] != pytest.approx(exact)


def test_what_is_not_a_number_is_null_in_json(tmp_path, stream):
    options = small(learning_rate=1e30, out=tmp_path)
    _, result = run(options, stream)
    assert not math.isfinite(result.test.auc)
    summary = training.summarize(result, None)
    training.write_outputs(tmp_path, options, result, summary)

    def refuse_constant(text):
        raise AssertionError(text)

    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse_constant)["auc"] is None
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse_constant)


def test_a_signal_is_held_back_until_the_step_is_done():
    before = signal.getsignal(signal.SIGINT)
    with interrupts_between_steps() as check:
        check()
        os.kill(os.getpid(), signal.SIGINT)
        reached = True  # nothing was raised here
        with pytest.raises(KeyboardInterrupt):
            check()
    assert reached
    assert signal.getsignal(signal.SIGINT) is before


def test_prunes_are_told_once(stream):
    options = small(compression=8.0, prune_interval=6, log_every=4)
    _, result = run(options, stream)
    told = [record["prune"]["steps"] for record in result.records if "prune" in record]
    assert told == [1, 1]  # 16 steps: prunes at 6 and 12


def test_the_warm_up_prunes_more_often(stream):
    options = small(compression=8.0, prune_interval=8, prune_warmup=8, log_every=4)
    _, result = run(options, stream)
    told = [record["prune"]["steps"] for record in result.records if "prune" in record]
    assert told == [3, 1, 1]  # 16 steps: prunes at 1, 2, 4, 8 and 16


def test_compilation_is_not_timed(monkeypatch):
    events = []

    def noted(name, do):
        def note(*args):
            events.append(name)
            return do(*args)

        return note

    for name in ("train_step", "prune_step", "Log"):
        monkeypatch.setattr(loop, name, noted(name, getattr(loop, name)))
    _, result = run(small(prune_interval=1), DemoStream(100, 20))  # one batch
    assert events == ["train_step", "prune_step", "Log"]  # traced before the clock runs
    assert result.records[-1]["prune"]["steps"] == 1
    assert result.examples_per_second > 0
