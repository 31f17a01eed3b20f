"""What the tests of the comparison share: options, a fake runner, outcomes by hand."""

import io

from rich.console import Console

from fiited_jax import comparison
from fiited_jax.comparison.cells import Line
from fiited_jax.data import DemoStream

STREAM = DemoStream(400, 100)


def make_options(out, **fields) -> comparison.CompareOptions:
    """Small options; any can be overridden."""
    out.mkdir(parents=True, exist_ok=True)
    defaults = {
        "methods": "full,hash,fiited",
        "sizes": "2,10",
        "seeds": 2,
        "batch_size": 64,
    }
    return comparison.CompareOptions(out=out, **{**defaults, **fields})


class FakeRunner:
    """Takes the place of training: a result is a function of the cell.

    Attributes:
      cells: what was run.
    """

    def __init__(self, auc=None, stop_after=None, refuse=lambda cell: None):
        self.cells = []
        self._auc = auc or (lambda cell: 0.7 + cell.options.seed % 7 / 100)
        self._stop_after, self._refuse = stop_after, refuse

    def __call__(self, cell):
        if len(self.cells) == self._stop_after:
            raise KeyboardInterrupt
        self.cells.append(cell)
        if reason := self._refuse(cell):
            return {"refused": reason}
        return make_record(self._auc(cell))


def make_record(auc, log_loss=0.5, ratio=2.0):
    """A result, without what tells its cell."""
    return {
        "auc": auc,
        "log_loss": log_loss,
        "all_in_bytes": int(2**20 / ratio),
        "values_bytes": int(2**19 / ratio),
        "all_in_ratio": ratio,
        "values_ratio": 1.5 * ratio,
    }


def make_outcome(method, size, *aucs, rate=0.1):
    """The outcome of a line, from the AUC of each seed."""
    records = tuple(make_record(auc, ratio=size or 1.0) for auc in aucs)
    return comparison.Outcome(Line(method, size), rate, records)


def run_fake(options, runner, stream=STREAM):
    """Run a comparison with a runner; return outcomes and what was told."""
    told = io.StringIO()
    progress = comparison.CompareProgress(Console(file=told, width=80))
    run = comparison.Comparison(options, stream, progress, lambda *_: runner)
    return run.run(), told.getvalue()
