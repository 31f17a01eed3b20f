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
    shape = kernels.Shape(200, 16, ids, 0.25)
    frames = kernels.draw_frames(shape, distinct=False)
    assert frames.shape == (26 * 200,)
    assert abs(np.mean(frames == pk.NULL_FRAME) - 0.25) < 0.03
    assert frames.max() < kernels.POOL_VALUES // 16
    most = np.bincount(frames[frames > 0]).max()
    assert (most > 500) == (ids == "zipf")
    once = kernels.draw_frames(shape, distinct=True)
    assert np.bincount(once[once > 0]).max() == 1
    assert set(once) == set(frames)


def test_contenders_do_the_same(kernels):
    shape = kernels.Shape(3, 4, "uniform", 0.5)
    for make in kernels.OPERATIONS.values():
        _, contenders = make(shape, ["xla"])
        done = [
            jax.tree.map(np.asarray, one._call(one._kept, *one._others))
            for one in contenders.values()
        ]
        (own, own_out), (ours, out) = done
        for left, right in zip(own, ours, strict=True):  # an update
            np.testing.assert_allclose(left, right, rtol=1e-6)
            assert np.any(left)
        if not own:  # a gather
            np.testing.assert_array_equal(own_out, out)


def test_a_row_for_every_shape_is_written(kernels, tmp_path, capsys):
    out = tmp_path / "k.json"
    few = ["--batch-sizes", "2", "--chunk-dims", "4", "16", "--ids", "zipf"]
    kernels.main([*few, "--null-shares", "0.5", "--rounds", "2", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["device"] == jax.devices()[0].device_kind
    assert len(result["rows"]) == 4
    for row in result["rows"]:
        low, middle, high = row["gigabytes_per_second"]
        assert 0 < low <= middle <= high
    assert len(capsys.readouterr().out.splitlines()) == 5
