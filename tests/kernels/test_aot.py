"""Compilation for chips that are not there."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot
from pallas_kernels.aot.__main__ import main
from pallas_kernels.aot.compiling import kernel_names

ALL_KERNELS = ["gather_chunks", "probe_page_table", "update_chunks"]
KERNELS = {
    name: [] if case.kernel is None else [case.kernel]
    for name, case in aot.CASES.items()
} | {"update_chunks/sparsecore": ["gather_chunks", "update_chunks"]}


def run(*arguments):
    command = [sys.executable, "-m", "pallas_kernels.aot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["v6e", pytest.param("v5e", marks=pytest.mark.slow)])
def test_every_operation_compiles_without_a_temporary_of_the_order_of_the_pool(target):
    pytest.importorskip("libtpu")
    done = run("--target", target, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    cases = json.loads(done.stdout)["cases"]
    meant = {k for k, c in aot.CASES.items() if c.platform != "gpu"}
    if target == "v5e":  # it has no SparseCores
        meant = {name for name in meant if not name.endswith("/sparsecore")}
    assert cases.keys() == meant
    for name, case in cases.items():
        assert case["argument_bytes"] > 1 << 20, name
        assert case["temporary_share"] < 0.05, name
        assert case["kernels"] == KERNELS[name], name
        if name.startswith("update_chunks"):  # in place, values and optimizer state
            assert case["aliased_bytes"] == 1 << 27, name
        if name.startswith("scatter_chunks"):
            assert case["aliased_bytes"] == 1 << 26, name


@pytest.mark.slow
def test_kernels_need_next_to_nothing_where_xla_pads_rows():
    """XLA lays rows of 16 values out as lines of 128 on a v5p: 2 MiB a batch."""
    pytest.importorskip("libtpu")
    done = run("--target", "v5p", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    cases = json.loads(done.stdout)["cases"]
    named = {k: c for k, c in cases.items() if aot.CASES[k].kernel is not None}
    assert {f"{name}/mosaic_tpu" for name in ALL_KERNELS} <= named.keys()
    for name, case in named.items():
        assert case["kernels"] == KERNELS[name]
        if name == "update_chunks/sparsecore":  # XLA works out: rows of two arrays
            assert case["temporary_bytes"] < 0.05 * case["aliased_bytes"], name
        else:
            assert case["temporary_share"] < 0.05, name
    for name, case in cases.items():
        assert case["temporary_bytes"] < 1 << 25, name  # half of the pool


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "step"),
    [
        (target, step)
        for target in ("v5e", "v5p", "v6e")
        for step in ("mosaic_tpu_step", "mosaic_tpu_adam_step", "sparsecore_step")
        if (target, step) != ("v5e", "sparsecore_step")
    ],
)
def test_the_step_of_a_store_compiles_with_its_kernels(target, step):
    pytest.importorskip("libtpu")
    name = f"fiited_jax.chip_cases:{step}"
    done = run("--target", target, "--op", name, "--limit", "0.25", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    case = json.loads(done.stdout)["cases"][name]
    assert case["kernels"] == ALL_KERNELS
    assert case["aliased_bytes"] > 1 << 27


def own_case():
    """A function whose temporary is as large as its argument."""
    shape = jax.ShapeDtypeStruct((1 << 10, 1 << 10), jnp.float32)
    return aot.Case(lambda x: jnp.sort(x.T, 0).sum(), (shape,))


def test_what_the_compiler_says_is_told():
    """With the CPU in place of the chip."""
    cpu = jax.devices("cpu")[0]
    told = aot.compile_for(own_case(), cpu)
    assert told.error is None
    assert told.argument_bytes == 1 << 22
    assert told.temporary_share >= 1
    assert told.kernels == ()


def test_nothing_to_compile_for_has_no_share():
    cpu = jax.devices("cpu")[0]
    told = aot.compile_for(aot.Case(lambda: jnp.zeros(3), ()), cpu)
    assert (told.error, told.temporary_share) == (None, 0.0)


def test_kernels_are_those_with_a_name():
    call = '%a = f32[8] custom-call(%x), custom_call_target="c", metadata={op_name="jit'
    paths = ("f)/one/pallas_call", "f)/vmap(two)/pallas_call", "f)/pallas_call", "f)/x")
    text = "\n".join(f'{call}({path}"}}' for path in paths)
    text += '\n%b = f32[8] add(%x, %x), metadata={op_name="jit(f)/three/pallas_call"}'
    assert kernel_names(text) == ("one", "two")


def test_errors_are_told_too():
    cpu = jax.devices("cpu")[0]

    def fails(x):
        raise NotImplementedError("this cannot be")

    case = own_case()._replace(function=fails)
    assert aot.compile_for(case, cpu).error == "NotImplementedError: this cannot be"
    case = own_case()._replace(kernel="gather_chunks")
    error = aot.compile_for(case, cpu).error
    assert error == "kernel gather_chunks is not in the code, kernels: ()"


def test_the_command_prints_and_tells_by_its_exit_status(monkeypatch, capsys):
    cpu = jax.devices("cpu")[0]
    monkeypatch.setattr("pallas_kernels.aot.__main__.open_target", lambda name: cpu)
    assert main(["--target", "v6e", "--op", "scatter_chunks"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.startswith("compiled for v6e")
    assert head.endswith("nothing was run")
    assert line.startswith("scatter_chunks/xla")
    assert "temporaries" in line
    assert main(["--target", "v6e", "--op", "gather_chunks"]) == 0  # of this platform
    capsys.readouterr()
    assert main(["--target", "v6e", "--op", "gather_chunks/mosaic_tpu"]) == 1
    assert "interpret mode is supported on CPU" in capsys.readouterr().out
    own = ["--target", "v6e", "--op", f"{__name__}:own_case"]
    assert main(own) == 0
    assert main([*own, "--limit", "0.5"]) == 1
    assert main([*own, "--limit", "9"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "v9"], "v9"),
        (["--target", "v6e", "--op", "nothing"], "op must be one of gather_chunks/xla"),
        (["--target", "v6e", "--op", "no.module:case"], "is not there"),
        (["--target", "v6e", "--op", "json:case"], "is not there"),
        (["--target", "v6e", "--op", "os:getpid"], "must return a Case"),
    ],
)
def test_bad_arguments_are_refused(arguments, words, monkeypatch, capsys):
    cpu = jax.devices("cpu")[0]
    monkeypatch.setattr("pallas_kernels.aot.__main__.open_target", lambda name: cpu)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert words in capsys.readouterr().err


def test_a_compiler_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(aot.TargetError, match="pip install libtpu"):
        aot.open_target("v6e")
    with pytest.raises(aot.TargetError, match=f"jax-cuda13-plugin=={jax.__version__}"):
        aot.open_target("h100")
