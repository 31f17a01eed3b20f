"""The benchmark against torch: it runs, and its sizes are what they say."""

import json
import sys

import numpy as np
import pytest

import cpu_peer
import gpu_peer


@pytest.fixture
def tiny(monkeypatch):
    """Few tables of few ids, and no torch."""
    for name, value in (("NUM_TABLES", 3), ("NUM_IDS", 200), ("BATCH_SIZE", 16)):
        monkeypatch.setattr(cpu_peer, name, value)
    monkeypatch.setitem(sys.modules, "torch", None)


def test_stores_are_timed_and_of_the_sizes_they_say(tiny, tmp_path, capsys):
    out = tmp_path / "results.json"
    gpu_peer.main(["--rounds", "2", "--steps", "2", "--out", str(out)])
    assert "torch is missing" in capsys.readouterr().out
    result = json.loads(out.read_text())
    theirs = 8 * 3 * 200 * 64
    for row, share in zip(result["rows"], gpu_peer.BUDGET_SHARES, strict=True):
        assert row["name"] == f"xla, 1/{share} of the bytes"
        assert 0.8 * theirs / share < row["num_bytes"] <= theirs / share
        assert row["median_ms"] > 0
    assert result["lookups"] == 48


def test_a_store_of_all_bytes_holds_whole_vectors(tiny):
    batches = [next(cpu_peer.batches(0))]
    store = gpu_peer.Store("xla", 1, batches)
    before = np.asarray(store._state.pool.values)
    store.turn()
    moved = np.sum(np.asarray(store._state.pool.values) != before)
    ids, _ = batches[0]
    num_distinct = sum(len(np.unique(row)) for row in ids)
    assert moved > 0.95 * 64 * num_distinct
