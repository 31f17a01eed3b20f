"""How fast kernels move chunks, against a copy on the same device and against XLA.

    python benchmarks/kernels.py [--implementations xla triton] [--out results.json]

Times `gather_chunks`, and `update_chunks` with Adagrad, at the lookups of a batch of 26
features. In every round each contender takes one turn, so that noise of the machine
hits all of them: a device copy of as many bytes as are moved, XLA's own gather and
scatter of rows, and the implementations. Bytes are counted as read and written once, of
null frames the written ones alone. A share is that of the bandwidth of the copy, a
ratio the time of XLA's own over that of the implementation; both are medians over
rounds, with quartiles.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels as pk

NUM_FEATURES = 26
POOL_VALUES = 1 << 24
WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is looked up.

    Attributes:
      batch_size: examples; 26 lookups each.
      chunk_dim: C.
      ids: `"zipf"` or `"uniform"`.
      null_share: share of the lookups that have no frame.
    """

    batch_size: int
    chunk_dim: int
    ids: str
    null_share: float

    @property
    def num_lookups(self) -> int:
        """Lookups of a batch."""
        return NUM_FEATURES * self.batch_size


def draw_frames(shape: Shape, *, distinct: bool) -> np.ndarray:
    """Draw the frames of a batch, `i32[n]`; with `distinct` repeats are null frames."""
    rng = np.random.default_rng(0)
    num_frames = POOL_VALUES // shape.chunk_dim
    if shape.ids == "zipf":
        ranks = np.minimum(rng.zipf(1.2, shape.num_lookups), num_frames - 1)
        places = 1 + rng.permutation(num_frames - 1)
        frames = places[ranks - 1]
    else:
        frames = rng.integers(1, num_frames, shape.num_lookups)
    frames[rng.random(frames.size) < shape.null_share] = pk.NULL_FRAME
    if distinct:
        first = np.unique(frames, return_index=True)[1]
        frames[np.setdiff1d(np.arange(frames.size), first)] = pk.NULL_FRAME
    return frames.astype(np.int32)


def adagrad(windows: Any, operands: Any) -> Any:
    """Step values and sums of squares, `[m, C]` each."""
    (values, sums), (grads,) = windows, operands
    sums = sums + grads * grads
    values = values - 0.05 * grads / (jnp.sqrt(sums) + 1e-10)
    return (values, sums), jnp.ones((values.shape[0], 1), bool)


class Contender:
    """Something that is timed.

    Args:
      function: of the arrays that are kept from call to call, and the others.
      kept: arrays that are donated and replaced.
      others: arrays.
    """

    def __init__(self, function: Callable[..., Any], kept: Any, *others: Any) -> None:
        """Compile, and run until it is warm."""
        self._call = jax.jit(function, donate_argnums=0)
        self._kept, self._others = jax.tree.map(jnp.copy, kept), others
        for _ in range(WARM_UP):
            self.seconds()

    def seconds(self) -> float:
        """Time one call."""
        start = time.perf_counter()
        self._kept, out = self._call(self._kept, *self._others)
        jax.block_until_ready((self._kept, out))
        return time.perf_counter() - start


def copier(num_bytes: int) -> Contender:
    """Copy half as many bytes: as many are read as are written."""
    source = jnp.zeros(max(num_bytes // 8, 1), jnp.float32)
    return Contender(lambda kept, source: (kept, source + 1.0), (), source)


def gather_contenders(
    shape: Shape, implementations: list[str]
) -> tuple[int, dict[str, Contender]]:
    """Return the bytes that a gather moves, and who does it."""
    frames = jnp.asarray(draw_frames(shape, distinct=False))
    pool = jnp.zeros((POOL_VALUES // 128, 128), jnp.float32)
    num_read = int(jnp.sum(frames != pk.NULL_FRAME))
    num_bytes = 4 * shape.chunk_dim * (num_read + shape.num_lookups)

    def take(kept: tuple[()], pool: jax.Array, frames: jax.Array) -> Any:
        return kept, jnp.take(pool.reshape(-1, shape.chunk_dim), frames, axis=0)

    def kernel(name: Any) -> Callable[..., Any]:
        gather = functools.partial(
            pk.gather_chunks, chunk_dim=shape.chunk_dim, implementation=name
        )
        return lambda kept, pool, frames: (kept, gather(pool, frames))

    contenders = {"own": Contender(take, (), pool, frames)}
    for name in implementations:
        contenders[name] = Contender(kernel(name), (), pool, frames)
    return num_bytes, contenders


def update_contenders(
    shape: Shape, implementations: list[str]
) -> tuple[int, dict[str, Contender]]:
    """Return the bytes that an update moves, and who does it."""
    frames = jnp.asarray(draw_frames(shape, distinct=True))
    lines = jnp.zeros((POOL_VALUES // 128, 128), jnp.float32)
    grads = jnp.ones((shape.num_lookups, shape.chunk_dim), jnp.float32)
    num_real = int(jnp.sum(frames != pk.NULL_FRAME))
    # Values and sums are read and written, gradients are read.
    num_bytes = 4 * shape.chunk_dim * (4 * num_real + shape.num_lookups)

    def scatter(kept: Any, frames: jax.Array, grads: jax.Array) -> Any:
        tables = tuple(array.reshape(-1, shape.chunk_dim) for array in kept)
        windows = tuple(table[frames] for table in tables)
        new, _ = adagrad(windows, (grads,))
        to = jnp.where(frames == pk.NULL_FRAME, len(tables[0]), frames)
        tables = tuple(
            table.at[to].set(part, mode="drop")
            for table, part in zip(tables, new, strict=True)
        )
        return tuple(
            table.reshape(array.shape)
            for table, array in zip(tables, kept, strict=True)
        ), ()

    def kernel(name: Any) -> Callable[..., Any]:
        def update(kept: Any, frames: jax.Array, grads: jax.Array) -> Any:
            widths = (shape.chunk_dim,) * 2
            return pk.update_chunks(
                kept, frames, (grads,), adagrad, widths, implementation=name
            )

        return update

    contenders = {"own": Contender(scatter, (lines, lines), frames, grads)}
    for name in implementations:
        contenders[name] = Contender(kernel(name), (lines, lines), frames, grads)
    return num_bytes, contenders


OPERATIONS = {"gather_chunks": gather_contenders, "update_chunks": update_contenders}


def measure(
    operation: str, shape: Shape, implementations: list[str], rounds: int
) -> list[dict[str, Any]]:
    """Time an operation at a shape; a row per implementation."""
    num_bytes, contenders = OPERATIONS[operation](shape, implementations)
    contenders["copy"] = copier(num_bytes)
    times = {name: np.empty(rounds) for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            times[name][number] = contender.seconds()

    def quartiles(numbers: np.ndarray) -> list[float]:
        return [round(float(q), 4) for q in np.quantile(numbers, [0.25, 0.5, 0.75])]

    return [
        {
            "operation": operation,
            "implementation": name,
            **dataclasses.asdict(shape),
            "bytes": num_bytes,
            "milliseconds": quartiles(1e3 * times[name]),
            "gigabytes_per_second": quartiles(num_bytes / times[name] / 1e9),
            "share_of_copy": quartiles(times["copy"] / times[name]),
            "ratio_to_own": quartiles(times["own"] / times[name]),
        }
        for name in implementations
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--implementations", nargs="+", default=["xla"])
    parser.add_argument("--operations", nargs="+", default=[*OPERATIONS])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2048])
    parser.add_argument(
        "--chunk-dims", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64, 128]
    )
    parser.add_argument("--ids", nargs="+", default=["zipf", "uniform"])
    parser.add_argument("--null-shares", nargs="+", type=float, default=[0.1, 0.8])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    head = ("operation", "implementation", "shape", "ms", "GB/s", "of copy", "to own")
    print("{:14} {:14} {:32} {:>8} {:>8} {:>8} {:>8}".format(*head))
    for operation, *fields in itertools.product(
        options.operations,
        options.batch_sizes,
        options.chunk_dims,
        options.ids,
        options.null_shares,
    ):
        shape = Shape(*fields)
        for row in measure(operation, shape, options.implementations, options.rounds):
            rows.append(row)
            told = f"26 x {shape.batch_size}, C {shape.chunk_dim}, {shape.ids}, "
            told += f"{shape.null_share:.0%} null"
            print(
                f"{operation:14} {row['implementation']:14} {told:32} "
                f"{row['milliseconds'][1]:8.3f} {row['gigabytes_per_second'][1]:8.1f} "
                f"{row['share_of_copy'][1]:8.2f} {row['ratio_to_own'][1]:8.2f}"
            )
    if options.out is not None:
        about = {
            "device": jax.devices()[0].device_kind,
            "machine": platform.machine(),
            "jax": jax.__version__,
            "rounds": options.rounds,
        }
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
