r"""The results table: methods and sizes on a data set.

    python benchmarks/quality_table.py --data criteo --path FILE [--out results.json]
    python benchmarks/quality_table.py --data movielens --path FOLDER
    python benchmarks/quality_table.py --data criteo --path FILE \
        --set compression=10 fallback=shared --vary shared_share=0.02,0.1,0.5

Runs `fiited train` in process for every method, size and seed, with the command's
defaults, and prints mean and standard deviation over seeds as a Markdown table; or,
with `--vary`, for every value of an option of the command.
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import jax

from fiited_jax import training

METHODS = ("small_dim", "hash", "fiited")
SIZES = {"criteo": (2.0, 10.0, 50.0), "movielens": (2.0, 4.0)}
# One chunk per vector: whole rows compete.
ROWS = {"method": "fiited", "chunk_dim": 16}
OPTIONS = {field.name for field in dataclasses.fields(training.TrainOptions)}


def cells(data: str) -> list[dict[str, Any]]:
    """Return the options of every line of the table."""
    lines: list[dict[str, Any]] = [{"method": "full"}]
    for size in SIZES[data]:
        lines += [{"method": method, "compression": size} for method in METHODS]
        lines.append({**ROWS, "compression": size})
    return lines


def run(seed: int, **fields: Any) -> dict[str, Any]:
    """Train once and return the summary."""
    options = training.TrainOptions(seed=seed, **fields)
    stream = training.open_stream(options)
    trainer = training.Trainer(options, stream)
    return training.summarize(trainer.train(training.SilentReporter()), None)


def measure(data: str, path: Path, seeds: int, fields: dict[str, Any]) -> dict:
    """Train with several seeds: mean, spread and sizes."""
    result: dict[str, Any] = dict(fields)
    try:
        runs = [run(seed, data=data, path=path, **fields) for seed in range(seeds)]
    except ValueError as error:
        return {**result, "refused": str(error)}
    for name in ("auc", "log_loss"):
        values = [summary[name] for summary in runs]
        result[name] = statistics.mean(values)
        result[f"{name}_per_seed"] = values
        result[f"{name}_std"] = statistics.stdev(values) if seeds > 1 else 0.0
    for name in (
        "all_in_bytes",
        "dense_bytes",
        "all_in_ratio",
        "values_ratio",
        "metadata_share",
    ):
        result[name] = runs[-1][name]
    result["state_sha256"] = [summary["state_sha256"] for summary in runs]
    return result


def row(result: dict[str, Any]) -> str:
    """Format a line of the Markdown table."""
    size = f"{result['compression']:g}x" if "compression" in result else "-"
    method = result.get("method", "fiited")
    others = [name for name in result if name in OPTIONS - {"method", "compression"}]
    told = "".join(f", {name} {result[name]}" for name in others)
    method += ", rows" if ROWS.items() <= result.items() else told
    if "refused" in result:
        return f"| {method} | {size} | does not fit | | | | |"
    return (
        f"| {method} | {size} "
        f"| {result['auc']:.4f} ± {result['auc_std']:.4f} "
        f"| {result['log_loss']:.4f} ± {result['log_loss_std']:.4f} "
        f"| {result['all_in_ratio']:.1f} | {result['values_ratio']:.1f} "
        f"| {result['metadata_share']:.0%} |"
    )


def setting(text: str) -> tuple[str, list[Any]]:
    """Read an option and its values, `name=1,2` or `name=word`."""
    name, _, values = text.partition("=")
    if name not in OPTIONS or not values:
        raise argparse.ArgumentTypeError(
            f"must be NAME=VALUE with an option of fiited train, got {text!r}"
        )

    def read(value: str) -> Any:
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value

    return name, [read(value) for value in values.split(",")]


def main() -> None:
    """Run all cells, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=sorted(SIZES), required=True)
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", type=setting, nargs="*", default=[])
    parser.add_argument("--vary", type=setting)
    arguments = parser.parse_args()
    lines = cells(arguments.data)
    if arguments.vary or arguments.set:
        fixed = {name: values[0] for name, values in arguments.set}
        name, values = arguments.vary or arguments.set[0]
        lines = [{**fixed, name: value} for value in values]
    print("| method | size | AUC | log loss | all-in ratio | values ratio | metadata |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for fields in lines:
        results.append(measure(arguments.data, arguments.path, arguments.seeds, fields))
        print(row(results[-1]), flush=True)
    if arguments.out:
        report = {
            "data": arguments.data,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "seeds": arguments.seeds,
            "cells": results,
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
