"""A store and its pool, by kernels that are interpreted, as by XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chips import H100, V6E
from jax.sharding import AbstractMesh, use_abstract_mesh

import fiited_jax as fj
from fiited_jax import chunk_pool
from fiited_jax.precision import from_stored
from helpers import tolerance

pytestmark = pytest.mark.usefixtures("no_races")
CHIPS = {"mosaic_tpu": V6E, "sparsecore": V6E, "triton": H100}


OPTIMIZERS = {
    "adagrad": fj.sparse(optax.adagrad(0.5)),
    "adam": fj.sparse(optax.adam(0.1)),
    "short_adam": fj.sparse(optax.adam(0.1, mu_dtype=jnp.bfloat16)),
    "rowwise_adagrad": fj.rowwise_adagrad(0.1),
    "scaled_sgd": fj.sparse(optax.sgd(0.1), table_scale=(1.0, 0.5)),
    # A kernel can hold no array of its own: rates are looked up before.
    "schedule": fj.sparse(
        optax.sgd, learning_rate=lambda step: jnp.float32([1.0, 0.5])[step]
    ),
}


ON_TPU = [
    ("mosaic_tpu", np.float32, "rowwise_adagrad"),
    ("mosaic_tpu", np.uint16, "adam"),
    ("mosaic_tpu", np.uint16, "short_adam"),
]


@pytest.mark.parametrize(
    ("kernels", "dtype", "name"),
    [
        ("triton", dtype, name)
        for dtype in (np.float32, np.uint16)
        for name in sorted(OPTIMIZERS)
    ]
    + ON_TPU,
)
def test_a_pool_steps_by_kernels_as_by_xla(
    kernels, dtype, name, interpreted, small_blocks
):
    optimizer, rng = OPTIMIZERS[name], np.random.default_rng(0)
    pool = chunk_pool.init_pool(40, 4, optimizer, dtype, line_group=2)
    frames = jnp.int32([3, 0, 39, 1, 17, 5, 0])
    grads = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32).at[4, 0].set(jnp.nan)
    scale = optimizer.scale_of(jnp.int32([0, 0, 1, 1, 0, 1, 0]))
    pools = {"xla": pool, kernels: pool}
    for number in range(2):
        for by in pools:
            pools[by], is_sound = chunk_pool.update_frames(
                pools[by],
                frames,
                grads,
                optimizer,
                step=jnp.int32(number),
                scale=scale,
                kernels=by,
            )
            assert is_sound.tolist() == [True] * 4 + [False] + [True] * 2
    assert len(interpreted) == 2
    assert np.any(np.asarray(pools["xla"].values))
    leaves = (jax.tree.leaves(pools[by]) for by in pools)
    for expected, got in zip(*leaves, strict=True):
        assert got.dtype == expected.dtype
        if name == "short_adam":  # XLA may leave out a rounding to 16 bits
            got, expected = map(from_stored, (got, expected))
            close = tolerance(4, "bfloat16")
        else:
            close = tolerance(4)
        np.testing.assert_allclose(
            got.astype(jnp.float32), expected.astype(jnp.float32), **close
        )


@pytest.mark.parametrize(
    ("kernels", "fallback"),
    [
        ("triton", "zero"),
        pytest.param("mosaic_tpu", "shared", marks=pytest.mark.slow),
    ],
)
def test_a_store_trains_by_kernels_as_by_xla(
    kernels, fallback, interpreted, small_blocks
):
    fields = {
        "embedding_dim": 8,
        "chunk_dim": 4,
        "num_entries": 512,
        "num_frames": 40,
        "num_ways": 8,
        "fallback": fallback,
        "num_shared": 3 * (fallback == "shared"),
    }
    ids, grads = np.int32([5, 7, 5, 9, -1, 11]), jnp.ones((6, 8))
    found = []
    for name in ("xla", kernels):
        config = fj.EmbeddingConfig(**fields, kernels=name)
        store = fj.EmbeddingStore(config, OPTIMIZERS["adagrad"])
        state = store.init(jax.random.key(0))
        for number in range(2):
            state, handle, _ = store.admit(state, np.int32(ids + number * (ids > 0)))
            state, info = store.apply_gradients(state, handle, grads)
            state, _ = store.prune_step(state)
        assert int(info.updated) >= 4
        interpreted.clear()
        found.append(np.asarray(store.lookup(state, ids)))
        reads = len(interpreted)
        store.apply_gradients(state, handle, grads)
        if name == "xla":
            assert not interpreted
            continue
        # Read in one pass, the shared pool too; stepped one after the other.
        num_pools = 1 + (fallback == "shared")
        names = [call[1] for call in interpreted]
        assert names[:reads] == ["probe_and_load", "gather_chunks"]
        assert names.count("update_chunks") == num_pools
    assert np.count_nonzero(found[0]) > 20
    np.testing.assert_allclose(*found, **tolerance(3))


@pytest.mark.parametrize("kernels", sorted(CHIPS))
def test_the_step_of_a_store_lowers_for_its_platform(kernels):
    config = fj.EmbeddingConfig(
        embedding_dim=32, chunk_dim=16, num_entries=512, num_frames=65, kernels=kernels
    )
    store = fj.EmbeddingStore(config, OPTIMIZERS["adagrad"])

    def train(state, ids, grads):
        state, handle, _ = store.admit(state, ids)
        vectors = store.gather(state, handle)
        return store.apply_gradients(state, handle, grads)[0], vectors

    state = jax.eval_shape(store.init, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((300,), jnp.int32)
    grads = jax.ShapeDtypeStruct((300, 32), jnp.float32)
    chip = CHIPS[kernels]
    with use_abstract_mesh(AbstractMesh((1,), ("device",), abstract_device=chip)):
        traced = jax.jit(train, donate_argnums=0).trace(state, ids, grads)
        text = traced.lower(lowering_platforms=(chip.platform,)).as_text()
    assert "gather_chunks" in text
    assert "update_chunks" in text
    assert "probe_page_table" in text


@pytest.mark.parametrize(
    ("num_entries", "num_ways", "words"),
    [(1152, 32, r"multiple of 512; got shape \(1152,\)"), (1536, 48, "got 48")],
)
def test_key_words_that_a_kernel_cannot_copy_are_refused(num_entries, num_ways, words):
    config = fj.EmbeddingConfig(
        embedding_dim=32,
        chunk_dim=16,
        num_entries=num_entries,
        num_ways=num_ways,
        num_frames=65,
        kernels="mosaic_tpu",
    )
    store = fj.EmbeddingStore(config, OPTIMIZERS["adagrad"])
    state = jax.eval_shape(store.init, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((3,), jnp.int32)
    with pytest.raises(NotImplementedError, match=words):
        jax.eval_shape(store.admit, state, ids)


def test_kernels_of_a_config_are_named():
    with pytest.raises(ValueError, match=r"kernels must be 'xla'.*got 'cuda'"):
        fj.EmbeddingConfig(
            embedding_dim=8, chunk_dim=4, num_entries=32, num_frames=9, kernels="cuda"
        )
