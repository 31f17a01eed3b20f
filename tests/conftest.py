"""Settings that turn silent mistakes into failures."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _cache_in_tmp(tmp_path, monkeypatch):
    """Keep what the readers cache inside the test's own folder."""
    monkeypatch.setenv("FIITED_CACHE_DIR", str(tmp_path / "cache"))
