"""The cells of a comparison: one training run each."""

import dataclasses
import hashlib
import json
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ..data import ClickStream
from ..methods import STORE_OPTIONS, options_read
from ..training import TrainOptions
from ..version import __version__
from .ablations import Change, changes
from .options import LAST_SEED, OURS, CompareOptions

__all__ = ["Cell", "Line", "final_cells", "fingerprint", "lines", "tuning_cells"]

# Options that say where data lie and what is told, and do not change a result.
_NOT_IN_KEY = ("path", "schema", "log_every", "out")
_READ_SIZE = 1 << 14


class Line(NamedTuple):
    """A method at a size: what is tuned together and reported as one line.

    Attributes:
      method: its name.
      size: compression, `None` for method full.
      change: of an option, in an ablation.
    """

    method: str
    size: float | None
    change: Change | None = None

    @property
    def unchanged(self) -> "Line":
        """The line that is ablated."""
        return self._replace(change=None)

    def __str__(self) -> str:
        """Return a short name, such as `hash 10x`."""
        name = self.method if self.size is None else f"{self.method} {self.size:g}x"
        return name if self.change is None else f"{name}, {self.change}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
      kind: tuning runs are trained on the head of the training split and scored on its
        validation slice, final ones trained on all of it and scored on the test split.
      line: what it belongs to.
      options: of the run.
      validation_fraction: share of the slice; `None` for a final run.
    """

    kind: Literal["tuning", "final"]
    line: Line
    options: TrainOptions
    validation_fraction: float | None = None

    def describe(self) -> dict[str, Any]:
        """Return what tells it from other cells, as plain values."""
        options = dataclasses.asdict(self.options)
        ignored = {*_NOT_IN_KEY, *STORE_OPTIONS} - options_read(self.options.method)
        return {
            "kind": self.kind,
            "method": options.pop("method"),
            "size": options.pop("compression"),
            "seed": options.pop("seed"),
            "learning_rate": options.pop("learning_rate"),
            "validation_fraction": self.validation_fraction,
            "options": {
                name: value for name, value in options.items() if name not in ignored
            },
        }

    def key(self, data: str) -> str:
        """Return the name under which its result is found again.

        Code that changes within a version is not told apart: choose another folder.

        Args:
          data: `fingerprint` of the stream.
        """
        described = {
            **self.describe(),
            "data": data,
            "version": __version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        text = json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __str__(self) -> str:
        """Return a short name, such as `tuning hash 10x, learning rate 0.1`."""
        if self.kind == "tuning":
            return f"tuning {self.line}, learning rate {self.options.learning_rate:g}"
        return f"{self.line}, seed {self.options.seed}"


def lines(options: CompareOptions) -> list[Line]:
    """Return what is compared, method after method, then the ablations."""
    compared = [
        Line(method, size)
        for method in options.method_names()
        for size in ((None,) if method == "full" else options.compressions())
    ]
    if not options.ablations:
        return compared
    return compared + [
        Line(OURS, size, change)
        for size in options.compressions()
        for change in changes(options)
    ]


def tuning_cells(options: CompareOptions, line: Line) -> list[Cell]:
    """Return the search of a line, for each learning rate a run per tuning seed.

    Nothing for one rate, nor for an ablation: it keeps that of the unchanged line.
    """
    rates = options.rates()
    if len(rates) == 1 or line.change is not None:
        return []
    return [
        Cell(
            "tuning",
            line,
            _options_of(line, options, LAST_SEED - number, rate),
            options.validation_fraction,
        )
        for rate in rates
        for number in range(options.tuning_seeds)
    ]


def final_cells(options: CompareOptions, line: Line, rate: float) -> list[Cell]:
    """Return the reported runs of a line, one per seed."""
    return [
        Cell("final", line, _options_of(line, options, seed, rate))
        for seed in range(options.num_seeds())
    ]


def _options_of(
    line: Line, options: CompareOptions, seed: int, rate: float
) -> TrainOptions:
    made = options.train_options(line.method, line.size, seed=seed, learning_rate=rate)
    if line.change is None:
        return made
    return dataclasses.replace(made, **{line.change.option: line.change.value})


def fingerprint(stream: ClickStream) -> str:
    """Hash every example of a stream and where it is split; reads all of it.

    Raises:
      DataError: if it cannot be read.
    """
    total = hashlib.sha256()
    for split in ("train", "test"):
        total.update(split.encode())
        for batch in stream.batches(split, _READ_SIZE):
            for array in batch:
                total.update(f"{array.dtype} {array.shape}".encode())
                total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:32]
