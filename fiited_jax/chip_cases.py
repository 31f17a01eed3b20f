"""The step of a store as a case for `python -m pallas_kernels.aot`.

    python -m pallas_kernels.aot --target h100 --op fiited_jax.chip_cases:triton_step

Admission, gather and update of 2^12 lookups in a store of 2^20 frames of 16 float32,
with Adagrad unless it says Adam: what a training step does beside the dense model.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from pallas_kernels.aot import Case

from .config import EmbeddingConfig
from .scorers import grad_norm
from .sparse_optim import SparseOptimizer, sparse
from .state import EmbeddingState
from .store import EmbeddingStore

__all__ = [
    "mosaic_tpu_adam_step",
    "mosaic_tpu_step",
    "sparsecore_step",
    "triton_adam_step",
    "triton_step",
    "xla_step",
]

_NUM_LOOKUPS = 1 << 12
_CHUNK_DIM, _NUM_CHUNKS = 16, 4
_ADAGRAD = sparse(optax.adagrad(0.05))
_ADAM = sparse(optax.adam(0.05, mu_dtype="bfloat16"))


def xla_step() -> Case:
    """Return the step without kernels of ours."""
    return _step_case("xla")


def triton_step() -> Case:
    """Return the step by kernels for NVIDIA GPUs."""
    return _step_case("triton")


def triton_adam_step() -> Case:
    """Return the step by kernels for NVIDIA GPUs, momentum and values of 16 bits."""
    return _step_case("triton", _ADAM, "bfloat16")


def mosaic_tpu_step() -> Case:
    """Return the step by kernels for TPUs."""
    return _step_case("mosaic_tpu")


def mosaic_tpu_adam_step() -> Case:
    """Return the step by kernels for TPUs, momentum and values of 16 bits."""
    return _step_case("mosaic_tpu", _ADAM, "bfloat16")


def sparsecore_step() -> Case:
    """Return the step by kernels for the SparseCores of TPUs that have them."""
    return _step_case("sparsecore")


def _step_case(
    kernels: Literal["xla", "mosaic_tpu", "sparsecore", "triton"],
    optimizer: SparseOptimizer = _ADAGRAD,
    value_dtype: Literal["float32", "bfloat16"] = "float32",
) -> Case:
    config = EmbeddingConfig(
        embedding_dim=_CHUNK_DIM * _NUM_CHUNKS,
        chunk_dim=_CHUNK_DIM,
        num_entries=1 << 19,
        num_frames=1 << 20,
        num_tables=26,
        id_bits=32,
        scorer=grad_norm(),
        value_dtype=value_dtype,
        kernels=kernels,
    )
    store = EmbeddingStore(config, optimizer)

    def step(
        state: EmbeddingState, ids: jax.Array, tables: jax.Array, grads: jax.Array
    ) -> tuple[EmbeddingState, jax.Array]:
        state, handle, _ = store.admit(state, ids, tables=tables)
        vectors = store.gather(state, handle)
        # Gradients come of the vectors: no part may be left out.
        state, _ = store.apply_gradients(state, handle, vectors * grads)
        return state, vectors

    arguments = (
        jax.eval_shape(store.init, jax.random.key(0)),
        jax.ShapeDtypeStruct((_NUM_LOOKUPS,), jnp.int32),
        jax.ShapeDtypeStruct((_NUM_LOOKUPS,), jnp.int32),
        jax.ShapeDtypeStruct((_NUM_LOOKUPS, config.embedding_dim), jnp.float32),
    )
    named = None if kernels == "xla" else "update_chunks"
    return Case(step, arguments, (0,), named)
