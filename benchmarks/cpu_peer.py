"""Time the sparse part of a step against FBGEMM's dense tables, on the CPU.

    pip install -e '.[peer]'
    python benchmarks/cpu_peer.py [--out results.json]

Ours: admit with filter and eviction and gather, then row-wise Adagrad and scores, each
jitted and donated, in a tenth of the bytes; once in chunks of 16 values, once in whole
vectors.
Theirs: forward, backward and row-wise Adagrad of FBGEMM's CPU table-batched embedding
without pooling, over tables that hold every id. 26 features x 2,048 examples, D = 64,
Zipf ids, the same fresh ids and the same gradients for all, one process, as many
threads as cores.

All take one step per round, in an order that turns around; the figure is the median
over rounds of the time relative to theirs in the same round. The stores have seen
every id once before, so new ids evict. `prune_step` runs every 100 steps; it is not
in the step's time, its share is told beside it.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fiited_jax as fj

NUM_TABLES, BATCH_SIZE = 26, 2048
NUM_LOOKUPS = NUM_TABLES * BATCH_SIZE
EMBEDDING_DIM = 64
NUM_IDS = 100_000  # per table
ZIPF_EXPONENT = 1.2
LEARNING_RATE, EPS = 0.05, 1e-8
INITIAL_SCALE = 0.01
CHUNK_DIMS = (16, 64)
BUDGET_SHARE = 10  # our bytes are theirs divided by this
FILTER_SHARE = 0.01
PRUNE_INTERVAL = 100
# Worker threads spin for a while after their work is done: wait, before the next's.
PAUSE_SECONDS = 0.01
COUNTERS = ("hits", "admitted", "evicted", "filtered", "failed")


class Peer:
    """FBGEMM's tables; every id has its row."""

    def __init__(self, num_threads: int) -> None:
        """Allocate the tables, or leave the program if there is no FBGEMM."""
        try:
            import fbgemm_gpu  # pyright: ignore[reportMissingImports]
            import torch  # pyright: ignore[reportMissingImports]
            from fbgemm_gpu import (  # pyright: ignore[reportMissingImports]
                split_embedding_configs,
                split_table_batched_embeddings_ops_training,
            )
        except ImportError as error:
            print(
                f"{error.name or error} is missing: pip install -e '.[peer]'",
                file=sys.stderr,
            )
            sys.exit(2)
        ops = split_table_batched_embeddings_ops_training
        torch.set_num_threads(num_threads)
        self.versions = {
            "torch": torch.__version__,
            "fbgemm": fbgemm_gpu.__version__,
        }
        self.torch = torch
        row = (
            NUM_IDS,
            EMBEDDING_DIM,
            ops.EmbeddingLocation.HOST,
            ops.ComputeDevice.CPU,
        )
        self.tables = ops.SplitTableBatchedEmbeddingBagsCodegen(
            [row] * NUM_TABLES,
            optimizer=split_embedding_configs.EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LEARNING_RATE,
            eps=EPS,
            pooling_mode=ops.PoolingMode.NONE,
        )
        self.tables.init_embedding_weights_uniform(-INITIAL_SCALE, INITIAL_SCALE)
        self.num_bytes = 4 * NUM_TABLES * NUM_IDS * (EMBEDDING_DIM + 1)
        # Ids of 32 bits are faster than those of 64.
        self.offsets = torch.arange(NUM_LOOKUPS + 1, dtype=torch.int32)

    def step(self, ids: np.ndarray, grads: np.ndarray) -> Callable[[], None]:
        """Return a step on ids `i32[T, B]`, gradients `f32[T, B, D]`; to be timed."""
        flat = self.torch.from_numpy(ids.reshape(-1))
        given = self.torch.from_numpy(grads.reshape(NUM_LOOKUPS, EMBEDDING_DIM))

        def run() -> None:
            self.tables(flat, self.offsets).backward(given)

        return run


class Ours:
    """A store of a tenth of the bytes, and its compiled halves of a step."""

    def __init__(self, chunk_dim: int, budget: int) -> None:
        """Allocate and compile."""
        optimizer = fj.rowwise_adagrad(LEARNING_RATE, eps=EPS)
        config = fj.EmbeddingConfig.from_budget(
            budget,
            embedding_dim=EMBEDDING_DIM,
            chunk_dim=chunk_dim,
            optimizer=optimizer,
            num_tables=NUM_TABLES,
            id_bits=32,
            ranking="lengths",
            filter_share=FILTER_SHARE,
            initial_scale=INITIAL_SCALE,
        )
        self.name = f"chunks of {chunk_dim}"
        self.config, self.chunk_dim = config, chunk_dim
        self.num_bytes = fj.predict_memory(config, optimizer).all_in_bytes
        store = fj.EmbeddingStore(config, optimizer)
        self.state = store.init(jax.random.key(0))
        self.tables = jnp.arange(NUM_TABLES)[:, None]
        self.steps, self.prune_seconds = 0, []
        self.counts = dict.fromkeys(COUNTERS, 0)

        def forward(state: Any, ids: jax.Array, tables: jax.Array) -> tuple[Any, ...]:
            state, handle, admitted = store.admit(state, ids, tables=tables)
            counts = jnp.stack([getattr(admitted, name) for name in COUNTERS])
            return state, store.gather(state, handle), handle, counts

        self.forward = jax.jit(forward, donate_argnums=0)
        self.backward = jax.jit(store.apply_gradients, donate_argnums=0)
        self.admit = jax.jit(store.admit, donate_argnums=0)
        self.prune = jax.jit(store.prune_step, donate_argnums=0)
        self.state, _ = jax.block_until_ready(self.prune(self.state))

    def see(self, ids: np.ndarray) -> None:
        """Admit `i32[T, B]` without a step."""
        self.state, _, _ = self.admit(self.state, jnp.asarray(ids), tables=self.tables)

    def step(self, ids: np.ndarray, grads: np.ndarray) -> Callable[[], None]:
        """Return a step as of `Peer.step`; prunes before it when it is time to."""
        if self.steps and self.steps % PRUNE_INTERVAL == 0:
            start = time.perf_counter()
            self.state, _ = jax.block_until_ready(self.prune(self.state))
            self.prune_seconds.append(time.perf_counter() - start)
        given, wanted = jnp.asarray(grads), jnp.asarray(ids)

        def run() -> None:
            # Two calls, as theirs are: these gradients do not depend on the vectors.
            self.state, _, handle, counts = self.forward(
                self.state, wanted, self.tables
            )
            self.state, _ = self.backward(self.state, handle, given)
            jax.block_until_ready(self.state)
            self.steps += 1
            for name, count in zip(COUNTERS, counts.tolist(), strict=True):
                self.counts[name] += count

        return run


def batches(seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw fresh ids `i32[T, B]` and gradients `f32[T, B, D]` without end."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, NUM_IDS + 1) ** ZIPF_EXPONENT
    cumulated = np.cumsum(weights / weights.sum())
    # Which ids are popular differs by table, and they do not lie side by side.
    by_rank = np.stack([rng.permutation(NUM_IDS) for _ in range(NUM_TABLES)])
    shape = (NUM_TABLES, BATCH_SIZE)
    while True:
        ranks = np.searchsorted(cumulated, rng.random(shape)).clip(0, NUM_IDS - 1)
        ids = np.take_along_axis(by_rank, ranks, axis=1).astype(np.int32)
        yield ids, rng.standard_normal((*shape, EMBEDDING_DIM), np.float32)


def seconds(run: Callable[[], None]) -> float:
    """Time one step, when the threads of the one before are at rest."""
    time.sleep(PAUSE_SECONDS)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(
    contestants: list[Any], stores: list[Ours], warm_up: int, rounds: int
) -> np.ndarray:
    """Warm up, then time all in turn: `f64[rounds, contestants]` seconds."""
    for start in range(0, NUM_IDS, BATCH_SIZE):
        ids = np.arange(start, start + BATCH_SIZE, dtype=np.int32) % NUM_IDS
        for store in stores:
            store.see(np.broadcast_to(ids, (NUM_TABLES, BATCH_SIZE)))
    stream = batches(seed=0)
    for _ in range(warm_up):
        batch = next(stream)
        for contestant in contestants:
            contestant.step(*batch)()
    for store in stores:
        store.counts = dict.fromkeys(COUNTERS, 0)
    times = np.empty((rounds, len(contestants)))
    for i in range(rounds):
        batch = next(stream)
        order = range(len(contestants))
        for column in order if i % 2 else reversed(order):
            run = contestants[column].step(*batch)
            times[i, column] = seconds(run)
    return times


def ratios(times: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Summarize `f64[rounds]` seconds, relative to others of the same rounds."""
    low, median, high = np.percentile(times / base, (25, 50, 75))
    return {
        "median_ms": float(np.median(times) * 1e3),
        "median_ratio": float(median),
        "ratio_quartiles": [float(low), float(high)],
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=250)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    num_threads = os.cpu_count() or 1
    peer = Peer(num_threads)
    stores = [Ours(dim, peer.num_bytes // BUDGET_SHARE) for dim in CHUNK_DIMS]
    times = measure([*stores, peer], stores, arguments.warm_up, arguments.rounds)
    theirs = times[:, -1]
    row = {"name": "fbgemm", "num_bytes": peer.num_bytes, **ratios(theirs, theirs)}
    rows: list[dict[str, Any]] = [row]
    for column, store in enumerate(stores):
        step = times[:, column]
        prune = float(np.median(store.prune_seconds))
        rows.append(
            {
                "name": store.name,
                "chunk_dim": store.chunk_dim,
                "num_bytes": store.num_bytes,
                "num_entries": store.config.num_entries,
                "num_frames": store.config.num_frames,
                **ratios(step, theirs),
                "prune_ms": prune * 1e3,
                "prune_share": prune / PRUNE_INTERVAL / float(np.median(step)),
                "with_prune_ratio": ratios(step + prune / PRUNE_INTERVAL, theirs)[
                    "median_ratio"
                ],
                "per_step": {
                    name: count / arguments.rounds
                    for name, count in store.counts.items()
                },
            }
        )
    result: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "threads": num_threads,
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
        **peer.versions,
        "allocator": {
            name: value
            for name, value in os.environ.items()
            if name == "GLIBC_TUNABLES" or name.startswith("MALLOC_")
        },
        "lookups": NUM_LOOKUPS,
        "embedding_dim": EMBEDDING_DIM,
        "ids_per_table": NUM_IDS,
        "zipf_exponent": ZIPF_EXPONENT,
        "prune_interval": PRUNE_INTERVAL,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    print("                   MB      ms   ratio   (quartiles)      prune step")
    for row in rows:
        low, high = row["ratio_quartiles"]
        line = (
            f"{row['name']:13} {row['num_bytes'] / 1e6:7.1f} {row['median_ms']:7.2f} "
            f"{row['median_ratio']:7.3f}   ({low:.3f} - {high:.3f})"
        )
        if "prune_ms" in row:
            line += f"  {row['prune_ms']:6.1f} ms, {row['prune_share']:.1%} of a step"
        print(line)
    for row in rows[1:]:
        counts = ", ".join(f"{v:.0f} {k}" for k, v in row["per_step"].items())
        print(f"{row['name']}: per step {counts}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
