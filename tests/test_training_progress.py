"""What is told while a run goes on: a bar on a terminal, lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from fiited_jax.training import make_reporter

RECORD = {
    "step": 999_980,
    "loss": 0.45678,
    "auc_so_far": 0.76543,
    "examples_per_second": 123_456.7,
    "frames_used": 98_765_432,
}
STATUS = "loss 0.4568 AUC 0.7654 123k ex/s 98.8M frames"


def told(records, **fields):
    """Return what a reporter writes to an 80 columns wide console."""
    file = io.StringIO()
    reporter = make_reporter(Console(file=file, width=80, **fields))
    reporter.start(1_000_000)
    for record in records:
        reporter.log(record)
    reporter.stop()
    return file.getvalue()


def test_the_bar_fits_80_columns():
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", told([RECORD], force_terminal=True))
    last = [line for line in re.split(r"[\r\n]", text) if line.strip()][-1]
    assert len(last) <= 80
    assert " 999980/1000000 ━" in last
    assert last.rstrip().endswith(STATUS)  # not cut


def test_a_second_training_starts_the_same_bar_again():
    file = io.StringIO()
    reporter = make_reporter(Console(file=file, width=80, force_terminal=True))
    reporter.start(1_000_000)
    reporter.log(RECORD)
    reporter.start(2_000_000)
    reporter.stop()
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).strip()
    last = [line for line in re.split(r"[\r\n]", last) if line.strip()][-1]
    assert "0/2000000" in last
    assert "starting" in last
    assert "999980" not in last


def test_lines_without_a_terminal():
    later = {**RECORD, "step": 1_000_000, "auc_so_far": float("nan")}
    del later["frames_used"]
    assert told([RECORD, later]).splitlines() == [
        f"step 999980/1000000  {STATUS}",
        "step 1000000/1000000  loss 0.4568 AUC nan 123k ex/s",
    ]


@pytest.mark.parametrize("fields", [{}, {"force_terminal": True}])
def test_nothing_to_tell_is_no_error(fields):
    assert "step" not in told([], **fields)
