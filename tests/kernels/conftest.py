"""What the tests of kernels share: they run interpreted, and races are found."""

import pytest
from chips import RACES

from pallas_kernels import mosaic_tpu, triton


@pytest.fixture
def no_races(capfd):
    """A race is no error of the interpreter: it is printed."""
    yield
    assert "race" not in capfd.readouterr().out.lower()


@pytest.fixture
def small_blocks(monkeypatch):
    """Interpretation is slow by the row: more blocks of fewer rows."""
    monkeypatch.setattr(mosaic_tpu.gather, "_BLOCK", 16)
    monkeypatch.setattr(mosaic_tpu.gather, "_IN_FLIGHT", 4)
    monkeypatch.setattr(mosaic_tpu.update, "_BLOCK", 16)
    monkeypatch.setattr(triton, "_VALUES", 64)


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels run here, interpreted; what they are called for is kept."""
    called = []

    def wrap(module, name, interpret):
        kernel = getattr(module, name)

        def run(*arguments):
            called.append((module, name))
            return kernel(*arguments, interpret=interpret)

        monkeypatch.setattr(module, name, run)

    for name in ("gather_chunks", "probe_and_load", "update_chunks"):
        wrap(triton, name, True)
        wrap(mosaic_tpu, name, RACES)
    return called
