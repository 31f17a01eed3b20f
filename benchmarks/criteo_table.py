"""The results table: methods and sizes on a file in the Criteo format.

    python benchmarks/criteo_table.py --path FILE [--seeds 3] [--out results.json]

Runs `fiited train` in process for every method, size and seed, with the command's
defaults, and prints mean and standard deviation over seeds as a Markdown table.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import jax

from fiited_jax import training

METHODS = ("small_dim", "hash", "fiited")
SIZES = (2.0, 10.0, 50.0)


def run(path: Path, seed: int, **fields: Any) -> dict[str, Any]:
    """Train once and return the summary."""
    options = training.TrainOptions(data="criteo", path=path, seed=seed, **fields)
    stream = training.open_stream(options)
    trainer = training.Trainer(options, stream)
    return training.summarize(trainer.train(training.SilentReporter()), None)


def cell(path: Path, seeds: int, **fields: Any) -> dict[str, Any]:
    """Train with several seeds: mean, spread and sizes."""
    try:
        runs = [run(path, seed, **fields) for seed in range(seeds)]
    except ValueError as error:
        return {**fields, "refused": str(error)}
    result: dict[str, Any] = dict(fields)
    for name in ("auc", "log_loss"):
        values = [summary[name] for summary in runs]
        result[name] = statistics.mean(values)
        result[f"{name}_per_seed"] = values
        result[f"{name}_std"] = statistics.stdev(values) if seeds > 1 else 0.0
    last = runs[-1]
    for name in ("all_in_bytes", "dense_bytes", "all_in_ratio", "values_ratio"):
        result[name] = last[name]
    framed = sum(last["bytes"][name] for name in ("values", "slots"))
    result["frames_share"] = framed / last["all_in_bytes"]
    result["state_sha256"] = [summary["state_sha256"] for summary in runs]
    return result


def row(result: dict[str, Any]) -> str:
    """Format a line of the Markdown table."""
    size = f"{result['compression']:g}x" if "compression" in result else "-"
    if "refused" in result:
        return f"| {result['method']} | {size} | does not fit | | | | |"
    return (
        f"| {result['method']} | {size} "
        f"| {result['auc']:.4f} ± {result['auc_std']:.4f} "
        f"| {result['log_loss']:.4f} ± {result['log_loss_std']:.4f} "
        f"| {result['all_in_ratio']:.1f} | {result['values_ratio']:.1f} "
        f"| {result['frames_share']:.0%} |"
    )


def main() -> None:
    """Run all cells, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cells: list[dict[str, Any]] = [{"method": "full"}]
    for size, method in itertools.product(SIZES, METHODS):
        cells.append({"method": method, "compression": size})
    print(
        "| method | size | AUC | log loss | all-in ratio | values ratio | in frames |"
    )
    print("|---|---|---|---|---|---|---|")
    results = []
    for fields in cells:
        results.append(cell(arguments.path, arguments.seeds, **fields))
        print(row(results[-1]), flush=True)
    if arguments.out:
        report = {
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "seeds": arguments.seeds,
            "cells": results,
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
