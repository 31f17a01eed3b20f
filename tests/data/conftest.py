"""What tests of several readers need."""

import pytest

from fiited_jax.data import lines


@pytest.fixture
def passes(monkeypatch):
    """Collect the paths of the passes over text files."""
    opened = []
    open_text = lines.open_text

    def counting(path):
        opened.append(path)
        return open_text(path)

    monkeypatch.setattr(lines, "open_text", counting)
    return opened
