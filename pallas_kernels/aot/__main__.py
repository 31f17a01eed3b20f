"""The command: `python -m pallas_kernels.aot`."""

import argparse
import dataclasses
import importlib
import json
import math
import sys

import jax

from .cases import CASES, Case
from .compiling import Compiled, compile_for
from .targets import TARGETS, TargetError, open_target

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Compile and print; the exit status is 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.aot",
        description="Compile for an accelerator that is not there.",
    )
    parser.add_argument("--target", required=True, choices=TARGETS)
    parser.add_argument(
        "--op",
        metavar="NAME",
        help="operation, operation/implementation, or module:function, a function of "
        "your own that returns a pallas_kernels.aot.Case; by default all operations",
    )
    parser.add_argument(
        "--limit",
        type=float,
        metavar="SHARE",
        help="end with status 1 also if temporaries take more than this share of the "
        "largest argument, such as 0.05",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = parser.parse_args(arguments)
    limit = math.inf if options.limit is None else options.limit
    if not limit >= 0:
        parser.error(f"limit must be at least 0, got {limit}")
    try:
        device = open_target(options.target)
        cases = _find(options.op, options.target, device.platform)
    except (ValueError, TargetError) as error:
        parser.error(str(error))
    told = {name: compile_for(case, device) for name, case in cases.items()}
    if options.json:
        report = {name: dataclasses.asdict(result) for name, result in told.items()}
        chip = {"target": options.target, "jax": jax.__version__}
        print(json.dumps({**chip, "cases": report}, indent=1, allow_nan=False))
    else:
        print(f"compiled for {options.target}, jax {jax.__version__}; nothing was run")
        for name, result in told.items():
            print(f"{name:26} {_describe(result)}")
    return int(
        any(
            result.error is not None or result.temporary_share > limit
            for result in told.values()
        )
    )


def _find(name: str | None, target: str, platform: str) -> dict[str, Case]:
    """Return the cases of a name; of several those that are meant for the chip."""
    if name is not None and ":" in name:
        return {name: _own_case(name)}
    if name in CASES:
        return {name: CASES[name]}
    found = {
        key: case
        for key, case in CASES.items()
        if name in (None, key.split("/")[0])
        and case.platform in (None, platform)
        and (case.targets is None or target in case.targets)
    }
    if not found:
        raise ValueError(f"op must be one of {', '.join(CASES)}, got {name!r}")
    return found


def _own_case(name: str) -> Case:
    module, _, function = name.partition(":")
    try:
        make_case = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"op {name!r} is not there: {error}") from error
    case = make_case()
    if not isinstance(case, Case):
        raise ValueError(f"op {name!r} must return a Case, got {case!r}")
    return case


def _describe(result: Compiled) -> str:
    if result.error is not None:
        return result.error
    text = (
        f"compiled in {result.seconds:.1f} s, temporaries {result.temporary_bytes:,} B "
        f"({100 * result.temporary_share:.1f} % of the largest argument), code "
        f"{result.code_bytes:,} B"
    )
    return f"{text}, kernels {', '.join(result.kernels)}" if result.kernels else text


if __name__ == "__main__":
    sys.exit(main())
