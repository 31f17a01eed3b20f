"""How the sparse part of a step scales with the size of the pool.

    python benchmarks/step_scaling.py [--out results.json]

Times admit + gather + update (53,248 ids, D = 64, K = 4, row-wise Adagrad) for pools
of 2^16 to 2^22 frames. In every round each pool takes one step, in turn, so that noise
of the machine hits all of them; the figure is the median over rounds of the time
relative to the smallest pool in the same round. Zipf ids are drawn over the same 8,192
resident keys in every pool, so only the size of the pool differs; uniform ids over as
many keys as the pool tracks are reported beside it, where cache misses grow.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fiited_jax as fj

NUM_LOOKUPS = 26 * 2048
NUM_RESIDENT = 8192
EMBEDDING_DIM, CHUNK_DIM = 64, 16
LOG_FRAMES = (16, 18, 20, 22)
NUM_BATCHES = 8


class Pool:
    """A store of one size, filled, and its compiled step."""

    def __init__(self, log_frames: int, distribution: str) -> None:
        """Allocate, admit every key that batches will hold, and compile."""
        num_frames = 1 << log_frames
        config = fj.EmbeddingConfig(
            embedding_dim=EMBEDDING_DIM,
            chunk_dim=CHUNK_DIM,
            num_entries=num_frames // 2,
            num_frames=num_frames,
            num_tables=26,
        )
        store = fj.EmbeddingStore(config, fj.rowwise_adagrad(0.05))
        self.state = store.init(jax.random.key(0))
        rng = np.random.default_rng(0)
        if distribution == "zipf":
            keys = rng.integers(0, 1 << 31, NUM_RESIDENT)
            weights = 1 / np.arange(1, NUM_RESIDENT + 1) ** 1.2
            weights /= weights.sum()
        else:
            keys = rng.integers(0, 1 << 31, num_frames // 4)
            weights = None
        keys = keys.astype(np.int32)
        draws = rng.choice(len(keys), (NUM_BATCHES, NUM_LOOKUPS), p=weights)
        self.batches = [jnp.asarray(keys[draw]) for draw in draws]
        grads = rng.normal(size=(NUM_LOOKUPS, EMBEDDING_DIM)).astype(np.float32)
        self.grads = jnp.asarray(grads)

        def step(state: Any, ids: jax.Array, grads: jax.Array) -> tuple[Any, jax.Array]:
            state, handle, admitted = store.admit(state, ids)
            vectors = store.gather(state, handle)
            state, _ = store.apply_gradients(state, handle, grads + vectors)
            return state, admitted.misses

        admit = jax.jit(store.admit, donate_argnums=0)
        for start in range(0, len(keys), NUM_LOOKUPS):
            ids = np.resize(keys[start : start + NUM_LOOKUPS], NUM_LOOKUPS)
            self.state, _, _ = admit(self.state, ids)
        self.step = jax.jit(step, donate_argnums=0)
        self.state, _ = self.step(self.state, self.batches[0], self.grads)

    def seconds(self, batch: int) -> float:
        """Time one step."""
        start = time.perf_counter()
        self.state, _ = self.step(self.state, self.batches[batch], self.grads)
        jax.block_until_ready(self.state)
        return time.perf_counter() - start


def measure(distribution: str, rounds: int) -> list[dict[str, Any]]:
    """Time all pools in turn."""
    pools = [Pool(log_frames, distribution) for log_frames in LOG_FRAMES]
    times = np.array(
        [[pool.seconds(i % NUM_BATCHES) for pool in pools] for i in range(rounds)]
    )
    ratios = times / times[:, :1]
    rows = []
    for column, log_frames in enumerate(LOG_FRAMES):
        low, median, high = np.percentile(ratios[:, column], (25, 50, 75))
        rows.append(
            {
                "log2_frames": log_frames,
                "median_ms": float(np.median(times[:, column]) * 1e3),
                "median_ratio": float(median),
                "ratio_quartiles": [float(low), float(high)],
            }
        )
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "jax": jax.__version__,
        "lookups": NUM_LOOKUPS,
        "embedding_dim": EMBEDDING_DIM,
        "chunk_dim": CHUNK_DIM,
        "rounds": arguments.rounds,
    }
    for distribution in ("zipf", "uniform"):
        rows = result[distribution] = measure(distribution, arguments.rounds)
        print(f"{distribution} ids\n  frames      ms   ratio   (quartiles)")
        for row in rows:
            low, high = row["ratio_quartiles"]
            print(
                f"  2^{row['log2_frames']:<4} {row['median_ms']:8.2f} "
                f"{row['median_ratio']:7.3f}   ({low:.3f} - {high:.3f})"
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
