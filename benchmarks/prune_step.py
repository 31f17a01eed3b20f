"""What a prune step takes, at four million tracked chunks.

    python benchmarks/prune_step.py [--out results.json]

Stores whose entries and frames are all in use; between two prune steps a batch of
65,536 ids, of which most are new, is admitted and scored, so that every prune step
moves frames. The figure is the median over prune steps, beside the median of the steps
between them and the temporary memory of the compiled prune step.
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

NUM_TRACKED = 1 << 22  # chunks
BATCH_SIZE = 1 << 16
# embedding_dim, chunk_dim, ranking, frames per entry
SHAPES = (
    (16, 1, "lengths", 2.0),
    (64, 1, "lengths", 7.0),
    (64, 16, "lengths", 1.0),
    (64, 16, "chunks", 2.0),
)


def measure(
    embedding_dim: int, chunk_dim: int, ranking: Any, length: float, rounds: int
) -> dict[str, Any]:
    """Fill a store, then prune it again and again."""
    num_entries = NUM_TRACKED * chunk_dim // embedding_dim
    config = fj.EmbeddingConfig(
        embedding_dim=embedding_dim,
        chunk_dim=chunk_dim,
        num_entries=num_entries,
        num_frames=int(num_entries * length),
        num_tables=26,
        id_bits=32,
        ranking=ranking,
        hysteresis=0.0,
    )
    store = fj.EmbeddingStore(config, fj.rowwise_adagrad(0.05))

    def step(state: Any, ids: jax.Array, grads: jax.Array) -> Any:
        state, handle, _ = store.admit(state, ids)
        return store.apply_gradients(state, handle, grads)[0]

    run = jax.jit(step, donate_argnums=0)
    state = store.init(jax.random.key(0))
    prune = jax.jit(store.prune_step, donate_argnums=0).lower(state).compile()
    analysis = prune.memory_analysis()
    rng = np.random.default_rng(0)

    def draw() -> tuple[jax.Array, jax.Array]:
        ids = rng.integers(0, 1 << 30, BATCH_SIZE).astype(np.int32)
        worth = rng.exponential(size=(BATCH_SIZE, 1)).astype(np.float32)
        return jnp.asarray(ids), jnp.asarray(np.repeat(worth, embedding_dim, axis=1))

    for _ in range(2 * num_entries // BATCH_SIZE):
        state = run(state, *draw())
    state, _ = prune(state)
    pruning, stepping, granted = [], [], []
    for _ in range(rounds):
        batch = jax.block_until_ready(draw())
        start = time.perf_counter()
        state = jax.block_until_ready(run(state, *batch))
        middle = time.perf_counter()
        state, info = jax.block_until_ready(prune(state))
        pruning.append(time.perf_counter() - middle)
        stepping.append(middle - start)
        granted.append(int(info.granted))
    return {
        "embedding_dim": embedding_dim,
        "chunk_dim": chunk_dim,
        "ranking": ranking,
        "num_entries": num_entries,
        "num_frames": config.num_frames,
        "state_bytes": store.memory_report(state).all_in_bytes,
        "temporary_bytes": analysis.temp_size_in_bytes if analysis else None,
        "median_ms": float(np.median(pruning) * 1e3),
        "step_median_ms": float(np.median(stepping) * 1e3),
        "median_granted": float(np.median(granted)),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "jax": jax.__version__,
        "tracked_chunks": NUM_TRACKED,
        "batch_size": BATCH_SIZE,
        "rounds": arguments.rounds,
    }
    print("  D  C  ranking  state MB  temporary MB  prune ms  a step, ms")
    rows = result["rows"] = []
    for shape in SHAPES:
        row = measure(*shape, rounds=arguments.rounds)
        rows.append(row)
        temporary = (row["temporary_bytes"] or 0) / 1e6
        print(
            f"{row['embedding_dim']:3} {row['chunk_dim']:2}  {row['ranking']:7} "
            f"{row['state_bytes'] / 1e6:9.1f} {temporary:13.1f} "
            f"{row['median_ms']:9.1f} {row['step_median_ms']:11.1f}"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
