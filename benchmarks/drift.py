r"""Who follows a stream that changes, and how fast.

    python benchmarks/drift.py [--quick] [--json results.json] [--plot auc.png]
    python benchmarks/drift.py --methods full fiited fiited:half_life=500

Every method trains in one pass over the generated stream: a quiet phase; then the
popularity ranks change hands at once; then half of the ids change what they do to the
labels. The AUC of a window is that of its predictions before each update. Streams
differ from seed to seed, as do initial weights; a curve is the mean over seeds.

The reference of a change is `full`, freshly trained: it starts at the change,
untrained, on the same examples. A method has recovered at the first window from which
on it stays within 0.002 of the reference until the phase ends, both smoothed over the
last four windows since the change, and takes what came before that window to recover.
The reference learns all the while, so one that is ahead at first may fall behind later:
it has not recovered then. The gap at the end, over the last four windows of a phase,
tells more than that where all recover alike.

Each method chooses its learning rate, with a stream of another seed, by the mean AUC of
the last four windows before the first change. The vocabulary, from which sizes follow
and to which `full`, `qr`, `mixed_dim` and `small_dim` have rows, is that of the whole
stream, ids of later phases included: these methods know beforehand what will come.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from fiited_jax import training
from fiited_jax.checks import BudgetError
from fiited_jax.data import Batch, Change, DemoStream, Split, Vocabulary, rebatch
from fiited_jax.methods import METHODS
from recovery import (
    BATCH_SIZE,
    KINDS,
    SMOOTHED,
    TOLERANCE,
    WINDOW,
    Setting,
    judge,
    of_phases,
    smooth,
)

REFERENCE = "full"
OFFLINE = {"pep"}  # trains again from the start once its lengths are known
RATES = (0.01, 0.03, 0.1)
PHASES = (12, 12, 36)  # concepts take long to learn anew
FOLLOWS = "fiited:half_life=500,frames_per_entry=4"  # forgets sooner, longer vectors
EXACT = "fiited:fallback=zero"  # without coarse values


@functools.cache
def open_stream(setting: Setting, seed: int) -> DemoStream:
    """Return the stream of a seed, all phases of it."""
    places = zip(setting.changes, KINDS, strict=True)
    changes = [Change(WINDOW * number, kind) for number, kind in places]
    return DemoStream(WINDOW * sum(setting.phases), WINDOW, seed, changes=changes)


class Part:
    """Phases of a stream as a stream of their own, with the vocabulary of all of it."""

    name = DemoStream.name
    num_dense = DemoStream.num_dense
    num_tables = DemoStream.num_tables

    def __init__(self, stream: DemoStream, start: int, stop: int) -> None:
        """Cut examples [start, stop) of the train split out."""
        self.num_train, self.num_test = stop - start, stream.num_test
        self._stream, self._start = stream, start

    def batches(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Iterate over a split; the test split is that of the stream."""
        if split == "test":
            return self._stream.batches(split, batch_size)
        return rebatch(self._cut(), batch_size)

    def _cut(self) -> Iterator[Batch]:
        first = 0
        for batch in self._stream.batches("train", WINDOW):
            if self._start <= first < self._start + self.num_train:
                yield batch
            first += WINDOW

    def vocabulary(self) -> Vocabulary:
        """Return that of the whole stream."""
        return self._stream.vocabulary()

    def bayes(self) -> None:
        """Return None: not asked for."""


def curve(
    line: str, setting: Setting, stream: Any, seed: int, rate: float
) -> tuple[list[float], float]:
    """Train in one pass; return the AUC per window and the all-in ratio.

    Args:
      line: a method, with options of `fiited train` behind a colon or without.
      setting: of all runs.
      stream: to train on.
      seed: of the initial weights.
      rate: learning rate of the embeddings.
    """
    options = options_of(line, setting, seed, rate)
    result = training.Trainer(options, stream).train(training.SilentReporter())
    ratio = result.memory.all_in_ratio
    assert ratio is not None
    # A run that has diverged ranks nothing.
    aucs = [0.5 if math.isnan(r["auc"]) else r["auc"] for r in result.records]
    return aucs, ratio


def options_of(
    line: str, setting: Setting, seed: int, rate: float
) -> training.TrainOptions:
    """Return the options of a run, see `curve`.

    Raises:
      ValueError: on a line of no meaning.
    """
    method, fields = parse(line)
    if method not in METHODS or method in OFFLINE:
        known = sorted(METHODS.keys() - OFFLINE)
        raise ValueError(f"methods must be of {', '.join(known)}, got {method!r}")
    known = {field.name for field in dataclasses.fields(training.TrainOptions)}
    if unknown := fields.keys() - known:
        raise ValueError(f"methods: {method} has no option {', '.join(unknown)}")
    if empty := [name for name, value in fields.items() if value == ""]:
        raise ValueError(f"methods: {line} has no value for {', '.join(empty)}")
    return training.TrainOptions(
        method=method,  # pyright: ignore[reportArgumentType]
        compression=setting.compression,
        learning_rate=rate,
        batch_size=BATCH_SIZE,
        log_every=WINDOW // BATCH_SIZE,
        seed=seed,
        **fields,
    )


def parse(line: str) -> tuple[str, dict[str, Any]]:
    """Read a line of the table, `fiited` or `fiited:half_life=500,chunk_dim=4`."""
    method, _, rest = line.partition(":")
    fields = [field.partition("=") for field in rest.split(",") if field]
    return method, {name: _value(text) for name, _, text in fields}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def choose_rate(line: str, setting: Setting) -> float:
    """Return the learning rate of the highest AUC before the first change."""
    if len(setting.rates) == 1:
        return setting.rates[0]
    seed = setting.seeds  # of no reported run
    quiet = Part(open_stream(setting, seed), 0, setting.phases[0] * WINDOW)

    def quality(rate: float) -> float:
        return statistics.mean(curve(line, setting, quiet, seed, rate)[0][-SMOOTHED:])

    return max(setting.rates, key=quality)


def measure(line: str, setting: Setting) -> dict[str, Any]:
    """Choose the learning rate, then train with every seed.

    Args:
      line: of the table.
      setting: of all runs.

    Returns:
      The line, its learning rate and all-in ratio, and `auc` per seed and window; of
      the reference also `fresh`, the same from the first change on, started anew at
      every change. Or the line and why it was refused.
    """
    result: dict[str, Any] = {"line": line}
    try:
        rate = result["learning_rate"] = choose_rate(line, setting)
        for seed in range(setting.seeds):
            stream = open_stream(setting, seed)
            runs = {"auc": [0, stream.num_train]}
            if line == REFERENCE:
                starts = (change.at for change in stream.changes)
                runs["fresh"] = [*starts, stream.num_train]
            for name, bounds in runs.items():
                aucs: list[float] = []
                for start, stop in itertools.pairwise(bounds):
                    part = Part(stream, start, stop)
                    added, ratio = curve(line, setting, part, seed, rate)
                    aucs += added
                    result["all_in_ratio"] = ratio
                result.setdefault(name, []).append(aucs)
            jax.clear_caches()  # compiled code of other sizes is of no use
    except BudgetError as error:
        return {"line": line, "refused": str(error)}
    return result


def row(result: dict[str, Any], setting: Setting) -> str:
    """Format a line of the Markdown table."""
    if "refused" in result:
        return f"| {result['line']} | does not fit | | | | | | |"
    quiet = np.array(result["auc"])[:, : setting.phases[0]][:, -SMOOTHED:].mean()
    cells = [result["line"], f"{result['learning_rate']:g}"]
    cells += [f"{result['all_in_ratio']:.1f}", f"{quiet:.4f}"]
    for kind in KINDS:
        told = result[kind]
        taken = told["recovery"]
        if taken is None:
            cells.append("not within the phase")
        else:
            cells.append(f"{taken * WINDOW:,}" if taken else "at once")
        cells.append(f"{told['gap']:+.4f} ± {told['gap_std']:.4f}")
    return f"| {' | '.join(cells)} |"


def plot(path: Path, results: list[dict[str, Any]], setting: Setting) -> None:
    """Plot AUC over the stream, and the gap to the freshly trained full table.

    Args:
      path: a PNG file to write or replace; its folder is made.
      results: of all lines, the reference among them.
      setting: of all runs.
    """
    figure = Figure(figsize=(9, 8), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    reference = next(result for result in results if "fresh" in result)
    fresh = of_phases(np.mean(reference["fresh"], axis=0), setting)
    fresh = [smooth(part) for part in fresh]
    places = (np.arange(sum(setting.phases)) + 1) * WINDOW
    phases = np.split(places, setting.changes)[1:]
    for number, result in enumerate(r for r in results if "auc" in r):
        parts = np.split(np.mean(result["auc"], axis=0), setting.changes)
        ours = result["line"].partition(":")[0] == "fiited"
        style = {"color": f"C{number}", "linewidth": 2.2 if ours else 1.0}
        if number >= 10:
            style |= {"color": f"C{number - 10}", "linestyle": "-."}
        smoothed = [smooth(part) for part in parts]
        top.plot(places, np.concatenate(smoothed), label=result["line"], **style)
        for part, base, place in zip(smoothed[1:], fresh, phases, strict=True):
            bottom.plot(place, part - base, **style)
    for number, (base, place) in enumerate(zip(fresh, phases, strict=True)):
        label = None if number else "full, freshly trained"
        top.plot(place, base, "k--", label=label)
    for place, kind in zip(phases, KINDS, strict=True):
        start = place[0] - WINDOW
        for axes in (top, bottom):
            axes.axvline(start, color="grey", linewidth=0.8)
        top.annotate(f" {kind}", (start, 0.02), xycoords=("data", "axes fraction"))
    bottom.axhline(-TOLERANCE, color="k", linestyle="--", linewidth=0.8)
    bottom.set_ylim(-0.03, 0.03)
    bottom.set_xlabel("examples")
    top.set_ylabel(f"AUC before the update, mean of {SMOOTHED} windows")
    bottom.set_ylabel("gap to full, freshly trained")
    low = np.mean(reference["auc"], axis=0)[SMOOTHED:].min()
    top.set_ylim(low - 0.03)
    bottom.legend(*top.get_legend_handles_labels(), fontsize="small", loc="lower left")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)


def main() -> None:
    """Run all lines, print, write and plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, short phases")
    parser.add_argument("--methods", nargs="+", metavar="NAME[:OPTION=VALUE,...]")
    parser.add_argument("--compression", type=float, default=10.0)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    quick = arguments.quick
    setting = Setting(
        compression=arguments.compression,
        phases=(4, 4, 4) if quick else PHASES,
        seeds=(1 if quick else 6) if arguments.seeds is None else arguments.seeds,
        rates=(0.1,) if quick else RATES,
    )
    lines = arguments.methods or sorted({*METHODS, EXACT, FOLLOWS} - OFFLINE)
    if setting.seeds < 1:
        parser.error(f"argument --seeds: must be at least 1, got {setting.seeds}")
    try:
        for line in lines:
            options_of(line, setting, 0, setting.rates[0])
    except ValueError as error:
        parser.error(str(error))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
    print(
        "| method | learning rate | all-in ratio | AUC before the changes "
        + "".join(f"| {kind}: recovered after | gap at the end " for kind in KINDS)
        + "|\n"
        + "|---" * (4 + 2 * len(KINDS))
        + "|"
    )
    results = []
    fresh = np.empty(0)
    for line in dict.fromkeys([REFERENCE, *lines]):
        result = measure(line, setting)
        if line == REFERENCE:
            fresh = np.array(result["fresh"])
        if "refused" not in result:
            result |= judge(result, fresh, setting)
        results.append(result)
        print(row(result, setting), flush=True)
        if arguments.json:
            report = {
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "window": WINDOW,
                "tolerance": TOLERANCE,
                "smoothed": SMOOTHED,
                **dataclasses.asdict(setting),
                "lines": results,
            }
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.plot:
        plot(arguments.plot, results, setting)


if __name__ == "__main__":
    main()
