"""The options of `fiited compare`."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from ..methods import METHODS
from ..training import SharedOptions, TrainOptions, optional

__all__ = ["LAST_SEED", "OURS", "CompareOptions"]

LAST_SEED = (1 << 32) - 1
"""The largest seed. Tuning runs have this one and those before it."""

OURS = "fiited"
"""The method that is compared with all others, and ablated."""

_MAX_SEEDS = 1000
_SIZES, _RATES, _SEEDS = "2,10,50", "0.03,0.1,0.3", 3
_QUICK_SIZES, _QUICK_RATES, _QUICK_SEEDS = "10", "0.1", 1

_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(SharedOptions):
    """Compare embedding methods at equal all-in bytes.

    Attributes:
      out: folder for results.jsonl, report.md and plots. Runs found in its
        results.jsonl are not run again.
      methods: names separated by commas; by default all.
      sizes: compressions separated by commas, dense bytes over all-in bytes; method
        full runs once, without one. By default 2,10,50.
      seeds: how many seeds are reported, from 0 up. By default 3.
      learning_rates: of the embeddings, separated by commas. Every method chooses at
        every size what is best on the validation slice. By default 0.03,0.1,0.3.
      tuning_seeds: how many seeds try each learning rate; none of them is reported.
      validation_fraction: share of the training split that is its validation slice, its
        last examples.
      ablations: also try method fiited with one option changed at a time, at every size
        with the learning rate of the unchanged method.
      quick: try the command, on a short demo stream and by default at one size with one
        seed and one learning rate.
    """

    out: Path
    methods: Annotated[str, optional("NAME,...")] = ",".join(METHODS)
    sizes: Annotated[str | None, optional("FLOAT,...")] = None
    seeds: Annotated[int | None, optional("INT")] = None
    learning_rates: Annotated[str | None, optional("FLOAT,...")] = None
    tuning_seeds: int = 1
    validation_fraction: float = 0.1
    ablations: bool = False
    quick: bool = False

    def __post_init__(self) -> None:
        """Check what does not depend on the data."""
        super().__post_init__()
        if self.quick and self.data != "demo":
            raise ValueError(f"quick must come with data=demo, got data={self.data}")
        if not 1 <= self.num_seeds() <= _MAX_SEEDS:
            raise ValueError(f"seeds must be from 1 to {_MAX_SEEDS}, got {self.seeds}")
        if not 1 <= self.tuning_seeds <= _MAX_SEEDS:
            raise ValueError(
                f"tuning_seeds must be from 1 to {_MAX_SEEDS}, got {self.tuning_seeds}"
            )
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                "validation_fraction must be between 0 and 1, "
                f"got {self.validation_fraction}"
            )
        known = self.method_names()
        if self.ablations and OURS not in known:
            raise ValueError(
                f"methods must hold {OURS} with ablations, got {self.methods!r}"
            )
        self.compressions()
        self.rates()
        self.train_options(known[0], None, seed=0, learning_rate=0.1)

    def method_names(self) -> tuple[str, ...]:
        """Return the methods, in the order given."""
        names = _distinct(name.strip() for name in self.methods.split(","))
        if not set(names) <= set(METHODS):
            raise ValueError(
                f"methods must be names from {', '.join(METHODS)}, separated by "
                f"commas, got {self.methods!r}"
            )
        return names

    def compressions(self) -> tuple[float, ...]:
        """Return the sizes, in the order given."""
        default = _QUICK_SIZES if self.quick else _SIZES
        return _numbers("sizes", default if self.sizes is None else self.sizes)

    def rates(self) -> tuple[float, ...]:
        """Return the learning rates, ascending."""
        default = _QUICK_RATES if self.quick else _RATES
        given = default if self.learning_rates is None else self.learning_rates
        return tuple(sorted(_numbers("learning_rates", given)))

    def num_seeds(self) -> int:
        """Return how many seeds are reported."""
        default = _QUICK_SEEDS if self.quick else _SEEDS
        return default if self.seeds is None else self.seeds

    def train_options(
        self, method: str, size: float | None, *, seed: int, learning_rate: float
    ) -> TrainOptions:
        """Return the options of one run.

        Args:
          method: its name.
          size: compression; `None` for method full.
          seed: of the initial weights.
          learning_rate: of the embeddings.
        """
        shared: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(SharedOptions)
        }
        named: Any = method
        return TrainOptions(
            **shared,
            method=named,
            compression=size,
            seed=seed,
            learning_rate=learning_rate,
        )


def _distinct(items: Iterable[_Item]) -> tuple[_Item, ...]:
    return tuple(dict.fromkeys(items))


def _numbers(name: str, text: str) -> tuple[float, ...]:
    """Read numbers separated by commas.

    >>> _numbers("sizes", "2,10,2.0")
    (2.0, 10.0)
    """
    try:
        numbers = _distinct(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    # The bounds of compression; learning rates beyond are of no use either.
    if not numbers or not all(1e-3 <= number <= 1e9 for number in numbers):
        raise ValueError(
            f"{name} must be numbers from 0.001 to 1e9, separated by commas, "
            f"got {text!r}"
        )
    return numbers
