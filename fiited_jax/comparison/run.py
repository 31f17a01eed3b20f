"""The run of a comparison: every line is tuned, then trained with every seed."""

from collections.abc import Callable
from typing import Any

from ..data import ClickStream, DemoStream, ValidationStream
from ..training import open_stream
from .cells import Cell, Line, final_cells, fingerprint, lines, tuning_cells
from .options import CompareOptions
from .outcome import Outcome
from .progress import CompareProgress
from .results import ResultsFile
from .runner import Runner, TrainerRunner
from .tuning import choose_rate

__all__ = ["Comparison", "open_data"]

_QUICK_EXAMPLES = (19_200, 4_800)

MakeRunner = Callable[[ClickStream, ClickStream, CompareProgress], Runner]


def open_data(options: CompareOptions) -> ClickStream:
    """Open the data that the options name.

    Raises:
      DataError: if they cannot be read.
    """
    return DemoStream(*_QUICK_EXAMPLES) if options.quick else open_stream(options)


class Comparison:
    """All cells of the options; those found in results.jsonl are not run again.

    Reads all data once, to tell results of other data apart.

    Args:
      options: What to compare; the folder `out` exists.
      stream: The data.
      progress: Is told of every cell.
      make_runner: Makes who runs the cells from the stream, its validation slice and
        the progress.

    Raises:
      DataError: The data cannot be read.
      ValueError: The validation slice or its rest is empty, or results.jsonl is not
        one.
      OSError: results.jsonl cannot be read.
    """

    def __init__(
        self,
        options: CompareOptions,
        stream: ClickStream,
        progress: CompareProgress,
        make_runner: MakeRunner = TrainerRunner,
    ) -> None:
        validation = ValidationStream(stream, options.validation_fraction)
        self._options, self._progress = options, progress
        self._results = ResultsFile(options.out / "results.jsonl")
        self._data = fingerprint(stream)
        self._runner = make_runner(stream, validation, progress)

    def run(self) -> list[Outcome]:
        """Run what is missing; an interrupt keeps what is finished.

        Returns:
          The outcome of every line.

        Raises:
          DataError: if the data cannot be read.
          OSError: if a result cannot be written.
        """
        todo = lines(self._options)
        self._progress.open(sum(self._num_cells(line) for line in todo))
        outcomes: dict[Line, Outcome] = {}
        try:
            for line in todo:
                outcomes[line] = self._run_line(line, outcomes.get(line.unchanged))
        finally:
            self._progress.close()
        return list(outcomes.values())

    def _num_cells(self, line: Line) -> int:
        return len(tuning_cells(self._options, line)) + self._options.num_seeds()

    def _run_line(self, line: Line, unchanged: Outcome | None) -> Outcome:
        """Run a line; an ablation at the learning rate of what it ablates."""
        searched = self._run_cells(tuning_cells(self._options, line))
        num_left = self._num_cells(line) - len(searched)
        if refused := _refusal(searched):
            return self._refuse(line, None, refused, num_left)
        rates = self._options.rates()
        rate: float | None = choose_rate(searched) if searched else rates[0]
        if unchanged is not None:
            rate = unchanged.rate
        if rate is None:
            return self._refuse(line, None, f"nor does {line.unchanged}", num_left)
        records = self._run_cells(final_cells(self._options, line, rate))
        if refused := _refusal(records):
            return self._refuse(line, rate, refused, num_left - len(records))
        return Outcome(line, rate, tuple(records))

    def _refuse(
        self, line: Line, rate: float | None, reason: str, num_left: int
    ) -> Outcome:
        self._progress.skip(num_left, f"more of {line} not tried")
        return Outcome(line, rate, (), reason)

    def _run_cells(self, cells: list[Cell]) -> list[dict[str, Any]]:
        """Return the results of cells, up to the first that is refused.

        What is refused is so for its size, whatever seed or learning rate. The head of
        the training split has fewer ids, so a size that just fits may be refused there.
        """
        records, num_found = [], 0
        for cell in cells:
            key = cell.key(self._data)
            record = self._results.get(key)
            if record is None:
                self._progress.begin(cell)
                described = {"key": key, "data": self._data, **cell.describe()}
                record = self._results.add({**described, **self._runner(cell)})
                self._progress.finish(record)
            else:
                num_found += 1
            records.append(record)
            if "refused" in record:
                break
        if num_found:
            self._progress.skip(num_found, f"of {cells[0].line} found")
        return records


def _refusal(records: list[dict[str, Any]]) -> str | None:
    return records[-1].get("refused") if records else None
