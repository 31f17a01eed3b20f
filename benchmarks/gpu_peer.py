"""Time the whole sparse step of a store against torch's sparse Adagrad, on a GPU.

    python benchmarks/gpu_peer.py [--kernels xla triton] [--out results.json]

Ours: admit, gather, and Adagrad with scores, one jitted and donated function; in as
many bytes as theirs, whole vectors, and in a tenth of them.
Theirs: forward and backward of `EmbeddingBag(sparse=True)`, bags of one id, and
`torch.optim.Adagrad`, over tables that hold every id. 26 features x 2,048 examples,
D = 64, Zipf ids, the same fresh ids and gradients for all, as in `cpu_peer.py`.

A turn is several steps, each with other ids, dispatched one after the other and waited
for together; all take a turn in every round, in an order that turns around. The figure
is the median over rounds of the time relative to theirs in the same round. Without
torch the stores are timed alone, relative to the first. Runs on a CPU too, to see that
it works.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

# Torch shares the memory of the GPU; read when JAX opens it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cpu_peer
import fiited_jax as fj

CHUNK_DIM = 16
BUDGET_SHARES = (1, 10)  # our bytes are theirs divided by this
WARM_UP = 2


class Torch:
    """Torch's tables, one behind the other; every id has its row."""

    name = "torch"

    def __init__(self, torch: Any, batches: list[Any]) -> None:
        """Allocate the tables and copy the batches."""
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        size = cpu_peer.NUM_TABLES * cpu_peer.NUM_IDS, cpu_peer.EMBEDDING_DIM
        self._bags = torch.nn.EmbeddingBag(
            *size, mode="sum", sparse=True, device=self._device
        )
        scale = cpu_peer.INITIAL_SCALE
        torch.nn.init.uniform_(self._bags.weight, -scale, scale)
        self._optimizer = torch.optim.Adagrad(
            self._bags.parameters(), lr=cpu_peer.LEARNING_RATE
        )
        first = np.arange(cpu_peer.NUM_TABLES)[:, None] * cpu_peer.NUM_IDS
        self._batches = [
            (
                torch.from_numpy((ids + first).reshape(-1, 1)).to(self._device),
                torch.from_numpy(grads.reshape(ids.size, -1)).to(self._device),
            )
            for ids, grads in batches
        ]
        self.num_bytes = 8 * size[0] * size[1]  # values and sums of squares

    def turn(self) -> None:
        """Step once with every batch, and wait."""
        for ids, grads in self._batches:
            vectors = self._bags(ids)
            vectors.backward(vectors.detach() * grads)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        if self._device == "cuda":
            self._torch.cuda.synchronize()


class Store:
    """A store of a share of the bytes, that has seen every id."""

    def __init__(self, kernels: Any, share: int, batches: list[Any]) -> None:
        """Allocate, compile, admit every id and prune."""
        self.name = f"{kernels}, 1/{share} of the bytes"
        dim = cpu_peer.EMBEDDING_DIM
        num_ids = cpu_peer.NUM_TABLES * cpu_peer.NUM_IDS
        optimizer = fj.sparse(optax.adagrad(cpu_peer.LEARNING_RATE))
        config = fj.EmbeddingConfig.from_budget(
            8 * num_ids * dim // share,
            embedding_dim=dim,
            chunk_dim=CHUNK_DIM,
            optimizer=optimizer,
            num_tables=cpu_peer.NUM_TABLES,
            num_ids=num_ids,
            id_bits=32,
            initial_scale=cpu_peer.INITIAL_SCALE,
            scorer=fj.scorers.grad_norm(),
            initial_chunks=dim // CHUNK_DIM if share == 1 else 1,
            kernels=kernels,
        )
        store = fj.EmbeddingStore(config, optimizer)
        self.num_bytes = fj.predict_memory(config, optimizer).all_in_bytes
        tables = jnp.arange(cpu_peer.NUM_TABLES)[:, None]

        def train(state: Any, ids: jax.Array, grads: jax.Array) -> tuple[Any, Any]:
            state, handle, _ = store.admit(state, ids, tables=tables)
            vectors = store.gather(state, handle)
            return store.apply_gradients(state, handle, vectors * grads)

        self._train = jax.jit(train, donate_argnums=0)
        self._batches = [jax.tree.map(jnp.asarray, batch) for batch in batches]
        admit = jax.jit(
            lambda state, ids: store.admit(state, ids, tables=tables)[0],
            donate_argnums=0,
        )
        self._state = store.init(jax.random.key(0))
        for start in range(0, cpu_peer.NUM_IDS, cpu_peer.BATCH_SIZE):
            ids = np.arange(start, start + cpu_peer.BATCH_SIZE) % cpu_peer.NUM_IDS
            shape = (cpu_peer.NUM_TABLES, ids.size)
            self._state = admit(self._state, np.broadcast_to(np.int32(ids), shape))
        prune = jax.jit(store.prune_step, donate_argnums=0)
        self._state, _ = prune(self._state)

    def turn(self) -> None:
        """Step once with every batch, and wait."""
        for batch in self._batches:
            self._state, _ = self._train(self._state, *batch)
        jax.block_until_ready(self._state)


def measure(contestants: list[Any], rounds: int, steps: int) -> np.ndarray:
    """Time all in turn: `f64[rounds, contestants]` seconds per step."""
    times = np.empty((rounds, len(contestants)))
    for number in range(-WARM_UP, rounds):
        order = range(len(contestants))
        for column in order if number % 2 else reversed(order):
            start = time.perf_counter()
            contestants[column].turn()
            seconds = (time.perf_counter() - start) / steps
            if number >= 0:
                times[number, column] = seconds
    return times


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernels", nargs="+", default=["xla"])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--steps", type=int, default=8, help="of a turn")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    stream = cpu_peer.batches(seed=0)
    batches = [next(stream) for _ in range(options.steps)]
    versions = {"jax": jax.__version__}
    contestants: list[Any] = []
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("torch is missing: the stores are timed alone")
    else:
        contestants.append(Torch(torch, batches))
        versions["torch"] = torch.__version__
    for kernels in options.kernels:
        for share in BUDGET_SHARES:
            contestants.append(Store(kernels, share, batches))
    times = measure(contestants, options.rounds, options.steps)
    rows = [
        {
            "name": contestant.name,
            "num_bytes": contestant.num_bytes,
            **cpu_peer.ratios(times[:, column], times[:, 0]),
        }
        for column, contestant in enumerate(contestants)
    ]
    print("                                MB      ms   ratio   (quartiles)")
    for row in rows:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['name']:26} {row['num_bytes'] / 1e6:7.1f} {row['median_ms']:7.3f} "
            f"{row['median_ratio']:7.3f}   ({low:.3f} - {high:.3f})"
        )
    if options.out:
        result = {
            "device": jax.devices()[0].device_kind,
            **versions,
            "lookups": cpu_peer.NUM_TABLES * cpu_peer.BATCH_SIZE,
            "embedding_dim": cpu_peer.EMBEDDING_DIM,
            "ids_per_table": cpu_peer.NUM_IDS,
            "zipf_exponent": cpu_peer.ZIPF_EXPONENT,
            "rounds": options.rounds,
            "steps": options.steps,
            "rows": rows,
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
