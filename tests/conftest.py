"""Settings that turn silent mistakes into failures."""

import os

# Most of the time is compilation, of code that runs a few times on small arrays.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
        os.environ.get("XLA_FLAGS", ""),  # the last one counts
    ]
)

import jax
import pytest

from helpers import jitted

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_what_was_compiled():
    """Unload it: a process may map only so much memory, and XLA crashes beyond."""
    yield
    jitted.cache_clear()
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _cache_in_tmp(tmp_path, monkeypatch):
    """Keep what the readers cache inside the test's own folder."""
    monkeypatch.setenv("FIITED_CACHE_DIR", str(tmp_path / "cache"))
