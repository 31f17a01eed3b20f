"""Compilation for accelerators that are not there.

    python -m pallas_kernels.aot --target v5e|v5p|v6e|h100 [--op NAME] [--limit SHARE] \
        [--json]

The compiler of a chip needs no chip: for TPUs it is in the package `libtpu`, for
NVIDIA GPUs in `jax-cuda13-plugin` and `jax-cuda13-pjrt`. It says whether code compiles
for it, what memory that takes beside its arguments, and which kernels came out. It says
nothing of speed, and that something compiles does not mean that it runs.
"""

from .cases import CASES as CASES
from .cases import Case as Case
from .compiling import Compiled as Compiled
from .compiling import compile_for as compile_for
from .targets import TARGETS as TARGETS
from .targets import TargetError as TargetError
from .targets import open_target as open_target

__all__ = [
    "CASES",
    "TARGETS",
    "Case",
    "Compiled",
    "TargetError",
    "compile_for",
    "open_target",
]
