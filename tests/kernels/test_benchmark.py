"""The benchmark of the kernels: what it times is what it says."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import pallas_kernels as pk

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def kernels():
    spec = importlib.util.spec_from_file_location(
        "kernels", ROOT / "benchmarks" / "kernels.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernels"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["kernels"]


@pytest.mark.parametrize("ids", ["zipf", "uniform"])
def test_lookups_are_drawn_as_they_are_named(kernels, ids):
    shape = kernels.Shape(200, 16, ids, 0.25, 1 << 16)
    frames = kernels.draw_frames(shape, 0, distinct=False)
    assert frames.shape == (26 * 200,)
    assert abs(np.mean(frames == pk.NULL_FRAME) - 0.25) < 0.03
    assert frames.max() < shape.num_windows == 1 << 12
    most = np.bincount(frames[frames > 0]).max()
    assert (most > 500) == (ids == "zipf")
    once = kernels.draw_frames(shape, 0, distinct=True)
    assert np.bincount(once[once > 0]).max() == 1
    assert set(once) == set(frames)
    assert np.any(kernels.draw_frames(shape, 1, distinct=False) != frames)


@pytest.mark.parametrize(
    ("operation", "width"),
    [("gather_chunks", 4), ("update_chunks", 4), ("probe_page_table", 32)],
)
def test_contenders_do_the_same(kernels, operation, width):
    shape = kernels.Shape(3, width, "uniform", 0.5, 1 << 12)
    num_bytes, contenders, refused = kernels.contenders(operation, shape, ["xla"], 2)
    assert not refused
    (own, own_out), (ours, out) = (one.call() for one in contenders.values())
    for left, right in zip(own, ours, strict=True):  # an update
        np.testing.assert_allclose(left, right, rtol=1e-6)
        assert np.any(left)
    if operation != "update_chunks":
        np.testing.assert_array_equal(own_out, out)
        assert np.any(out > 0)
    if operation == "gather_chunks":
        frames = kernels.draw_frames(shape, 0, distinct=False)
        np.testing.assert_array_equal(~np.any(out, axis=1), frames == 0)
    least = {"gather_chunks": 16, "update_chunks": 16, "probe_page_table": 160}
    assert num_bytes > shape.num_lookups * least[operation]


def test_a_row_for_every_shape_is_written(kernels, tmp_path, capsys):
    out = tmp_path / "k.json"
    few = ["--batch-sizes", "2", "--chunk-dims", "4", "16", "--ids", "zipf"]
    few += ["--null-shares", "0.5", "--rounds", "2", "--pool-values", str(1 << 12)]
    kernels.main([*few, "--implementations", "xla", "other", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["device"] == jax.devices()[0].device_kind
    done = [row for row in result["rows"] if "refused" not in row]
    assert [row["implementation"] for row in done] == ["own", "xla"] * 5
    for row in done:
        low, middle, high = row["gigabytes_per_second"]
        assert 0 < low <= middle <= high
    refused = [row for row in result["rows"] if "refused" in row]
    assert {row["implementation"] for row in refused} == {"other"}
    assert len(refused) == 5
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(result["rows"])
