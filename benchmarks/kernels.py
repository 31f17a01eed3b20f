"""How fast kernels move chunks, against a copy on the same device and against XLA.

    python benchmarks/kernels.py [--implementations xla triton] [--out results.json]

Times `gather_chunks`, `update_chunks` with Adagrad, and `probe_page_table`, at the
lookups of a batch of 26 features. In every round each contender takes one turn, so that
noise of the machine hits all of them: a device copy of the pool, XLA's own gather,
scatter or comparison, and the implementations. A turn is several calls, each with other
lookups, dispatched one after the other and waited for together. All data are random,
and the pool is larger than what caches hold.

Bytes are counted as read and written once, of null frames the written ones alone. A
share is that of the bandwidth of the copy in the same round, a ratio the time of XLA's
own over that of the implementation; all are medians over rounds, with quartiles.
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels as pk

NUM_FEATURES = 26
POOL_VALUES = {"cpu": 1 << 24, "gpu": 1 << 28, "tpu": 1 << 28}
NUM_WAYS = 32
STRIDE = 2_654_435_761  # a prime: neighbours in rank are far apart in the pool
WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is looked up.

    Attributes:
      batch_size: examples; 26 lookups each.
      width: C, values per chunk; or W, ways per bucket.
      ids: `"zipf"` or `"uniform"`.
      null_share: share of the lookups that have no frame, or are not in the table.
      pool_values: values of the pool, or ways of the page table.
    """

    batch_size: int
    width: int
    ids: str
    null_share: float
    pool_values: int

    @property
    def num_lookups(self) -> int:
        """Lookups of a batch."""
        return NUM_FEATURES * self.batch_size

    @property
    def num_windows(self) -> int:
        """Frames of the pool, or buckets of the table."""
        return self.pool_values // self.width


def draw_windows(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Draw the frames or buckets of a batch, `i64[n]`, none of them the first."""
    num_windows = shape.num_windows - 1
    if shape.ids == "zipf":
        ranks = np.minimum(rng.zipf(1.2, shape.num_lookups), num_windows)
        return 1 + ranks * STRIDE % num_windows
    return rng.integers(1, num_windows + 1, shape.num_lookups)


def draw_frames(shape: Shape, seed: int, *, distinct: bool) -> np.ndarray:
    """Draw the frames of a batch, `i32[n]`; with `distinct` repeats are null frames."""
    rng = np.random.default_rng(seed)
    frames = draw_windows(shape, rng)
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


class Work(NamedTuple):
    """What all contenders of an operation are given.

    Attributes:
      kept: arrays that are donated and replaced, call after call.
      fixed: arrays that every call reads.
      batches: per call, the arrays of its lookups.
      num_bytes: that a call moves, the mean over calls.
    """

    kept: Any
    fixed: Any
    batches: list[Any]
    num_bytes: float


class Contender:
    """Something that is timed.

    Args:
      function: of `kept`, `fixed` and a batch; returns new `kept`, and a result.
      work: what it is given.
    """

    def __init__(self, function: Callable[..., Any], work: Work) -> None:
        """Compile, and run until it is warm."""
        self._call = jax.jit(function, donate_argnums=0)
        self._kept, self._work = jax.tree.map(jnp.copy, work.kept), work
        for _ in range(WARM_UP):
            self.turn()

    def turn(self) -> float:
        """Time one call of every batch; return seconds per call."""
        out = None
        start = time.perf_counter()
        for batch in self._work.batches:
            self._kept, out = self._call(self._kept, self._work.fixed, batch)
        jax.block_until_ready((self._kept, out))
        return (time.perf_counter() - start) / len(self._work.batches)

    def call(self) -> Any:
        """Call once and return what is kept and the result."""
        self._kept, out = self._call(
            self._kept, self._work.fixed, self._work.batches[0]
        )
        return jax.tree.map(np.asarray, (self._kept, out))


def random_lines(pool_values: int, seed: int) -> jax.Array:
    """Return a pool of positive values, `f32[L, 128]`."""
    key = jax.random.key(seed)
    return jax.random.uniform(key, (pool_values // 128, 128), minval=0.1)


def copier(pool_values: int) -> Contender:
    """Read a pool and write another."""
    source = random_lines(pool_values, 0)
    work = Work((), source, [()] * 2, 2.0 * source.nbytes)
    return Contender(lambda kept, source, _: (kept, source + 1.0), work)


def gather_work(shape: Shape, calls: int) -> tuple[Work, Callable[..., Any], Any]:
    """Return what a gather moves, XLA's own, and how to make one by name."""
    drawn = [draw_frames(shape, seed, distinct=False) for seed in range(calls)]
    num_read = float(np.mean([np.count_nonzero(frames) for frames in drawn]))
    num_bytes = 4 * shape.width * (num_read + shape.num_lookups)
    pool = random_lines(shape.pool_values, 0).at[0, : shape.width].set(0)
    work = Work((), pool, [jnp.asarray(frames) for frames in drawn], num_bytes)

    def own(kept: tuple[()], pool: jax.Array, frames: jax.Array) -> Any:
        return kept, jnp.take(pool.reshape(-1, shape.width), frames, axis=0)

    def kernel(name: Any) -> Callable[..., Any]:
        gather = functools.partial(
            pk.gather_chunks, chunk_dim=shape.width, implementation=name
        )
        return lambda kept, pool, frames: (kept, gather(pool, frames))

    return work, own, kernel


def update_work(shape: Shape, calls: int) -> tuple[Work, Callable[..., Any], Any]:
    """Return what an update moves, XLA's own, and how to make one by name."""
    drawn = [draw_frames(shape, seed, distinct=True) for seed in range(calls)]
    num_real = float(np.mean([np.count_nonzero(frames) for frames in drawn]))
    # Values and sums are read and written, gradients are read.
    num_bytes = 4 * shape.width * (4 * num_real + shape.num_lookups)
    grads = jax.random.normal(jax.random.key(2), (shape.num_lookups, shape.width))
    kept = tuple(random_lines(shape.pool_values, seed) for seed in range(2))
    work = Work(kept, grads, [jnp.asarray(frames) for frames in drawn], num_bytes)

    def own(kept: Any, grads: jax.Array, frames: jax.Array) -> Any:
        tables = tuple(array.reshape(-1, shape.width) for array in kept)
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
        def update(kept: Any, grads: jax.Array, frames: jax.Array) -> Any:
            widths = (shape.width,) * 2
            return pk.update_chunks(
                kept, frames, (grads,), adagrad, widths, implementation=name
            )

        return update

    return work, own, kernel


def probe_work(shape: Shape, calls: int) -> tuple[Work, Callable[..., Any], Any]:
    """Return what a probe moves, XLA's own, and how to make one by name.

    Keys are two words, one of 32 bits and one of 8, as in a store of 26 tables.
    """
    bits = jax.random.bits(jax.random.key(3), (shape.pool_values,), jnp.uint32)
    words = (bits, (bits % NUM_FEATURES).astype(jnp.uint8))

    def draw(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        buckets = jnp.asarray(draw_windows(shape, rng).astype(np.int32))
        ways = jnp.asarray(rng.integers(0, shape.width, shape.num_lookups))
        is_known = jnp.asarray(rng.random(shape.num_lookups) >= shape.null_share)
        low, owner = (word[buckets * shape.width + ways] for word in words)
        # No owner has this number.
        return (low, jnp.where(is_known, owner, 255)), buckets

    # Both words of all ways, both of the query, its bucket, and the answer.
    num_bytes = shape.num_lookups * (5 * shape.width + 5 + 4 + 4)
    work = Work((), words, [draw(seed) for seed in range(calls)], num_bytes)

    def own(kept: tuple[()], words: Any, batch: Any) -> Any:
        (low, owner), buckets = batch
        lows, owners = (word.reshape(-1, shape.width)[buckets] for word in words)
        matches = (lows == low[:, None]) & (owners == owner[:, None])
        way = jnp.argmax(matches, axis=1).astype(jnp.int32)
        return kept, jnp.where(jnp.any(matches, axis=1), way, pk.NO_WAY)

    def kernel(name: Any) -> Callable[..., Any]:
        def probe(kept: tuple[()], words: Any, batch: Any) -> Any:
            queries, buckets = batch
            return kept, pk.probe_page_table(
                words, queries, buckets, shape.width, implementation=name
            )

        return probe

    return work, own, kernel


OPERATIONS = {
    "gather_chunks": gather_work,
    "update_chunks": update_work,
    "probe_page_table": probe_work,
}


def contenders(
    operation: str, shape: Shape, implementations: list[str], calls: int
) -> tuple[float, dict[str, Contender], dict[str, str]]:
    """Return the bytes of a call, who takes part, and why others do not."""
    work, own, kernel = OPERATIONS[operation](shape, calls)
    taking_part, refused = {"own": Contender(own, work)}, {}
    for name in implementations:
        try:
            taking_part[name] = Contender(kernel(name), work)
        except NotImplementedError as error:
            refused[name] = str(error)
    return work.num_bytes, taking_part, refused


def measure(
    operation: str, shape: Shape, implementations: list[str], rounds: int, calls: int
) -> list[dict[str, Any]]:
    """Time an operation at a shape; a row per implementation."""
    num_bytes, timed, refused = contenders(operation, shape, implementations, calls)
    timed["copy"] = copier(shape.pool_values)
    times = {name: np.empty(rounds) for name in timed}
    for number in range(rounds):
        for name, contender in timed.items():
            times[name][number] = contender.turn()
    copied = 8 * shape.pool_values / times["copy"]

    def quartiles(numbers: np.ndarray) -> list[float]:
        return [round(float(q), 4) for q in np.quantile(numbers, [0.25, 0.5, 0.75])]

    about = {"operation": operation, **dataclasses.asdict(shape)}
    rows = [
        {
            **about,
            "implementation": name,
            "bytes": num_bytes,
            "milliseconds": quartiles(1e3 * times[name]),
            "gigabytes_per_second": quartiles(num_bytes / times[name] / 1e9),
            "copy_gigabytes_per_second": quartiles(copied / 1e9),
            "share_of_copy": quartiles(num_bytes / times[name] / copied),
            "ratio_to_own": quartiles(times["own"] / times[name]),
        }
        for name in timed
        if name != "copy"
    ]
    return rows + [
        {**about, "implementation": name, "refused": reason}
        for name, reason in refused.items()
    ]


def shapes(options: argparse.Namespace) -> list[tuple[str, Shape]]:
    """Return what is measured, operation after operation."""
    found = []
    for operation in options.operations:
        is_probe = operation == "probe_page_table"
        for fields in itertools.product(
            options.batch_sizes,
            [NUM_WAYS] if is_probe else options.chunk_dims,
            options.ids,
            options.null_shares,
        ):
            found.append((operation, Shape(*fields, options.pool_values)))
    return found


def told(row: dict[str, Any]) -> str:
    """Format a row of the table."""
    shape = f"26 x {row['batch_size']}, {row['width']} wide, {row['ids']}, "
    shape += f"{row['null_share']:.0%} null"
    head = f"{row['operation']:17} {row['implementation']:11} {shape:38} "
    if "refused" in row:
        return head + row["refused"]
    return head + (
        f"{row['milliseconds'][1]:8.3f} {row['gigabytes_per_second'][1]:8.1f} "
        f"{row['share_of_copy'][1]:8.2f} {row['ratio_to_own'][1]:8.2f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    backend = jax.default_backend()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--implementations", nargs="+", default=["xla"])
    parser.add_argument("--operations", nargs="+", default=[*OPERATIONS])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2048])
    parser.add_argument(
        "--chunk-dims", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64, 128]
    )
    parser.add_argument("--ids", nargs="+", default=["zipf", "uniform"])
    parser.add_argument("--null-shares", nargs="+", type=float, default=[0.1, 0.8])
    parser.add_argument("--pool-values", type=int, default=POOL_VALUES[backend])
    parser.add_argument("--calls", type=int, default=2 if backend == "cpu" else 8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    head = ("operation", "by", "shape", "ms", "GB/s", "of copy", "to own")
    print("{:17} {:11} {:38} {:>8} {:>8} {:>8} {:>8}".format(*head))
    for operation, shape in shapes(options):
        for row in measure(
            operation, shape, options.implementations, options.rounds, options.calls
        ):
            rows.append(row)
            print(told(row), flush=True)
    if options.out is not None:
        about = {
            "device": jax.devices()[0].device_kind,
            "backend": backend,
            "machine": platform.machine(),
            "jax": jax.__version__,
            "calls": options.calls,
            "rounds": options.rounds,
        }
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
