"""Chips that are not there: described to lower for, or interpreted."""

from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice

H100 = AbstractDevice("NVIDIA H100 80GB HBM3", None, "cuda")
V5E = AbstractDevice("TPU v5 lite", 1, "tpu")
V6E = AbstractDevice("TPU v6 lite", 1, "tpu")

RACES = pltpu.InterpretParams(detect_races=True, dma_execution_mode="eager")
"""Interprets a kernel for TPUs; see the fixture `no_races`."""
