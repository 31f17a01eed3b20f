"""Compilation of a case for a chip, and what the compiler tells of it."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from .cases import Case

__all__ = ["Compiled", "compile_for", "kernel_names"]

# A kernel by Pallas is a call to a target of its platform, or on a SparseCore one that
# starts there; its name is in its path.
_CALL = re.compile(
    r'(?:custom_call_target=|async_execution_thread="sparsecore").*'
    r'op_name="(?:[^"]*/)?([^"/]+)/(?:pallas_call|mpmd_map)"'
)
_NAME = re.compile(r"(?:vmap\()*(\w+)\)*")  # and not jit(f), of a kernel without a name


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says.

    Attributes:
      error: its words if it refuses, else `None`; then the rest is 0.
      seconds: of lowering and compilation.
      argument_bytes: of the arguments, as the chip holds them.
      output_bytes: of the results, those in place of arguments included.
      aliased_bytes: of results in place of arguments.
      temporary_bytes: needed beside both.
      temporary_share: of the largest argument.
      code_bytes: of the compiled code, 0 where it does not tell.
      kernels: names of the hand-written kernels in it.
      flops: of a run, `None` where it does not tell.
      bytes_accessed: of a run, `None` where it does not tell.
    """

    error: str | None
    seconds: float = 0.0
    argument_bytes: int = 0
    output_bytes: int = 0
    aliased_bytes: int = 0
    temporary_bytes: int = 0
    temporary_share: float = 0.0
    code_bytes: int = 0
    kernels: tuple[str, ...] = ()
    flops: float | None = None
    bytes_accessed: float | None = None


def compile_for(case: Case, device: Any) -> Compiled:
    """Compile.

    Args:
      case: what.
      device: for which, from `open_target`.

    Returns:
      What the compiler says. An implementation that refuses the case, and a kernel that
      is not in the code though the case names it, are errors too.
    """
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(device)
        ),
        case.arguments,
    )
    jitted = jax.jit(case.function, donate_argnums=case.donate)
    start = time.perf_counter()
    try:
        # Pallas asks the mesh which chip it lowers for.
        with jax.set_mesh(Mesh(np.array([device]), ("device",))):
            compiled = jitted.lower(*placed).compile()
    except Exception as error:  # whatever compilers raise is what is asked for
        return Compiled(f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    kernels = kernel_names(compiled.as_text() or "")
    if case.kernel is not None and case.kernel not in kernels:
        return Compiled(f"kernel {case.kernel} is not in the code, kernels: {kernels}")
    memory: Any = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    leaves = jax.tree.leaves(case.arguments)
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves]
    return Compiled(
        error=None,
        seconds=round(seconds, 2),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        aliased_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        temporary_share=memory.temp_size_in_bytes / max(sizes, default=0)
        if any(sizes)
        else 0.0,
        code_bytes=memory.generated_code_size_in_bytes,
        kernels=kernels,
        flops=costs.get("flops"),
        bytes_accessed=costs.get("bytes accessed"),
    )


def kernel_names(text: str) -> tuple[str, ...]:
    """Return the names of the kernels by Pallas in compiled code, in order."""
    called = map(_NAME.fullmatch, _CALL.findall(text))
    return tuple(sorted({match[1] for match in called if match}))
