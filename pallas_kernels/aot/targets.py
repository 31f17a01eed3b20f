"""Chips that are described and need not be there."""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

__all__ = ["TARGETS", "TargetError", "open_target"]

# Per TPU: the name of its smallest topology, and what a machine of it calls itself.
_TPUS = {
    "v5e": ("v5e:2x2", "v5litepod-4"),
    "v5p": ("v5p:2x2x1", "v5p-8"),
    "v6e": ("v6e:2x2", "v6e-4"),
}

# XLA's text form of GpuTargetConfigProto, figures from the data sheet of the H100 SXM.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 85899345920
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""

TARGETS = (*_TPUS, "h100")
"""Chips that can be compiled for."""


class TargetError(RuntimeError):
    """The compiler of a chip is not there, or does not start."""


def open_target(name: str) -> Any:
    """Return a device to compile for.

    Settings are those of the process: one process opens one target, before it uses jax
    otherwise, and computes on the CPU.

    Args:
      name: one of `TARGETS`.

    Returns:
      A device that takes shardings, and runs nothing.

    Raises:
      ValueError: on another name.
      TargetError: if the compiler is not installed, or refuses to start.
    """
    if name not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {name!r}")
    jax.config.update("jax_platforms", "cpu")
    is_tpu = name in _TPUS
    if is_tpu:
        _require("libtpu", "libtpu")
        topology, accelerator = _TPUS[name]
        os.environ.update(
            TPU_SKIP_MDS_QUERY="1",
            TPU_ACCELERATOR_TYPE=accelerator,
            TPU_WORKER_HOSTNAMES="localhost",
            ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # no chip, so nothing to lock
        )
        described = {"topology_name": topology, "platform": "tpu"}
    else:
        version = jax.__version__
        wheels = f"jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"
        _require("jax_cuda13_plugin", wheels)
        _require("jax_plugins.xla_cuda13", wheels)
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
        described = {
            "topology_name": "",
            "platform": "cuda",
            "topology": "1x1x1",
            "target_config": _H100,
        }
    try:
        return topologies.get_topology_desc(**described).devices[0]
    except Exception as error:  # whatever the plugin raises
        raise TargetError(f"the compiler for {name} does not start: {error}") from error


def _require(module: str, wheels: str) -> None:
    try:
        is_there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        is_there = False
    if not is_there:
        raise TargetError(f"{module} is not installed: pip install {wheels}")
