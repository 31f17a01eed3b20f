"""The kernels on the chips they are made for, against XLA on the same chip.

Not part of the default run: `pytest -m gpu -n 0`, `pytest -m tpu -n 0`. Where there is
no such chip that is an error, not a pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
import pallas_kernels as pk
from fiited_jax import chunk_pool
from helpers import tolerance

pytestmark = pytest.mark.filterwarnings("ignore:.*[Tt]riton:DeprecationWarning")

NUM_FRAMES = 1 << 20
NUM_LOOKUPS = [26 * 2048, 1001, 1]
TRITON = pytest.param("triton", marks=pytest.mark.gpu)
MOSAIC_TPU = pytest.param("mosaic_tpu", marks=pytest.mark.tpu)
SPARSECORE = pytest.param("sparsecore", marks=pytest.mark.tpu)
OPTIMIZERS = {
    "sgd": fj.sparse(optax.sgd(0.1)),
    "adagrad": fj.sparse(optax.adagrad(0.1)),
    "adam": fj.sparse(optax.adam(0.1)),
    "rowwise_adagrad": fj.rowwise_adagrad(0.1),
}


@pytest.fixture(autouse=True)
def _on_its_chip(request):
    platform = "gpu" if request.node.get_closest_marker("gpu") else "tpu"
    with jax.default_device(jax.devices(platform)[0]):
        yield


def make_pool(chunk_dim, dtype=np.float32):
    """Lines of values that differ from frame to frame, a null frame of zeros."""
    values = (np.arange(NUM_FRAMES * chunk_dim) % 65_521).astype(dtype)
    values[:chunk_dim] = 0
    return jnp.asarray(values.reshape(-1, 128))


def make_frames(num_lookups, *, distinct):
    """A third of them null frames, the last frame among the others."""
    rng = np.random.default_rng(num_lookups)
    frames = rng.integers(1, NUM_FRAMES, num_lookups)
    if distinct:
        first = np.unique(frames, return_index=True)[1]
        frames[np.setdiff1d(np.arange(num_lookups), first)] = pk.NULL_FRAME
    frames[rng.random(num_lookups) < 0.3] = pk.NULL_FRAME
    frames[frames == NUM_FRAMES - 1] = pk.NULL_FRAME
    frames[num_lookups // 2] = NUM_FRAMES - 1
    return frames.astype(np.int32)


@pytest.mark.parametrize("implementation", [TRITON, MOSAIC_TPU, SPARSECORE])
@pytest.mark.parametrize("num_lookups", NUM_LOOKUPS)
@pytest.mark.parametrize("chunk_dim", [1, 16, 128])
def test_chunks_are_read_exactly(implementation, chunk_dim, num_lookups):
    pool, frames = make_pool(chunk_dim), make_frames(num_lookups, distinct=False)
    read = jax.jit(pk.gather_chunks, static_argnums=2, static_argnames="implementation")
    got = read(pool, frames, chunk_dim, implementation=implementation)
    expected = np.asarray(pool).reshape(-1, chunk_dim)[frames]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("implementation", [TRITON, MOSAIC_TPU, SPARSECORE])
@pytest.mark.parametrize("num_lookups", NUM_LOOKUPS)
@pytest.mark.parametrize("chunk_dim", [4, 32])
def test_what_stands_in_is_read_exactly(implementation, chunk_dim, num_lookups):
    pool, frames = make_pool(chunk_dim), make_frames(num_lookups, distinct=False)
    fallback = -pool, jnp.asarray(np.roll(frames, 1))
    read = jax.jit(pk.gather_chunks, static_argnums=2, static_argnames="implementation")
    got = read(
        pool,
        jnp.asarray(frames),
        chunk_dim,
        fallback=fallback,
        implementation=implementation,
    )
    values = np.asarray(pool).reshape(-1, chunk_dim)
    others = -values[np.roll(frames, 1)]
    expected = np.where(frames[:, None] == 0, others, values[frames])
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("implementation", [TRITON, MOSAIC_TPU, SPARSECORE])
@pytest.mark.parametrize("num_lookups", NUM_LOOKUPS)
@pytest.mark.parametrize("chunk_dim", [1, 4, 16])
def test_chunks_are_overwritten_exactly(implementation, chunk_dim, num_lookups):
    pool, frames = make_pool(chunk_dim), make_frames(num_lookups, distinct=True)
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(num_lookups, chunk_dim)).astype(np.float32)
    expected = np.array(pool).reshape(-1, chunk_dim)
    expected[frames[frames > 0]] = chunks[frames > 0]
    write = jax.jit(
        pk.scatter_chunks, donate_argnums=0, static_argnames="implementation"
    )
    got = write(pool, frames, jnp.asarray(chunks), implementation=implementation)
    np.testing.assert_array_equal(np.asarray(got).reshape(expected.shape), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("num_lookups", NUM_LOOKUPS)
@pytest.mark.parametrize("chunk_dim", [32, 128])
def test_wide_chunks_are_read_exactly_by_mosaic_gpu(chunk_dim, num_lookups):
    pool, frames = make_pool(chunk_dim), make_frames(num_lookups, distinct=False)
    read = jax.jit(pk.gather_chunks, static_argnums=2, static_argnames="implementation")
    got = read(pool, frames, chunk_dim, implementation="mosaic_gpu")
    expected = np.asarray(pool).reshape(-1, chunk_dim)[frames]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [
        pytest.param("triton", np.uint16, marks=pytest.mark.gpu),
        pytest.param("triton", jnp.bfloat16, marks=pytest.mark.gpu),
        pytest.param("mosaic_tpu", np.uint16, marks=pytest.mark.tpu),
        pytest.param("mosaic_tpu", np.int32, marks=pytest.mark.tpu),
    ],
)
def test_other_dtypes_are_read_exactly(implementation, dtype):
    pool, frames = make_pool(8, dtype), make_frames(1001, distinct=False)
    frames = jnp.asarray(frames)
    got = pk.gather_chunks(pool, frames, 8, implementation=implementation)
    np.testing.assert_array_equal(got, np.asarray(pool).reshape(-1, 8)[frames])


@pytest.mark.parametrize("num_lookups", NUM_LOOKUPS)
@pytest.mark.parametrize(
    ("implementation", "name", "dtype"),
    [
        pytest.param(*one.values, name, np.float32, marks=one.marks)
        for one in (TRITON, MOSAIC_TPU, SPARSECORE)
        for name in OPTIMIZERS
    ]
    + [
        pytest.param(*one.values, "adagrad", np.uint16, marks=one.marks)
        for one in (TRITON, MOSAIC_TPU)
    ],
)
def test_frames_step_as_by_xla(implementation, name, dtype, num_lookups):
    optimizer, chunk_dim = OPTIMIZERS[name], 16
    pool = chunk_pool.init_pool(NUM_FRAMES, chunk_dim, optimizer, dtype, line_group=2)
    frames = jnp.asarray(make_frames(num_lookups, distinct=True))
    rng = np.random.default_rng(0)
    grads = jnp.asarray(rng.normal(size=(num_lookups, chunk_dim)), jnp.float32)
    grads = grads.at[0, 3].set(jnp.nan)

    def step(kernels):
        return chunk_pool.update_frames(
            pool, frames, grads, optimizer, step=jnp.int32(0), kernels=kernels
        )

    expected, expected_sound = step("xla")
    got, is_sound = step(implementation)
    np.testing.assert_array_equal(is_sound, expected_sound)
    assert num_lookups == 1 or np.any(np.asarray(got.values))
    for left, right in zip(
        jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
    ):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(left, right, **tolerance(4))


@pytest.mark.parametrize("implementation", [TRITON, MOSAIC_TPU])
@pytest.mark.parametrize("num_lookups", NUM_LOOKUPS)
def test_keys_are_found_as_by_xla(implementation, num_lookups):
    rng = np.random.default_rng(0)
    low = rng.integers(0, 64, NUM_FRAMES).astype(np.uint32)
    words = (jnp.asarray(low), jnp.asarray((low % 3).astype(np.uint8)))
    queries = rng.integers(0, 64, num_lookups).astype(np.uint32)
    queries = (jnp.asarray(queries), jnp.asarray((queries % 3).astype(np.uint8)))
    buckets = rng.integers(0, NUM_FRAMES // 32, num_lookups).astype(np.int32)
    found = [
        pk.probe_page_table(
            words, queries, jnp.asarray(buckets), 32, implementation=name
        )
        for name in ("xla", implementation)
    ]
    np.testing.assert_array_equal(*found)
    assert num_lookups < 2000 or len(np.unique(found[0])) == 33


@pytest.mark.parametrize("implementation", [TRITON, MOSAIC_TPU, SPARSECORE])
@pytest.mark.parametrize("fallback", ["zero", "shared"])
def test_a_store_trains_as_by_xla(implementation, fallback):
    num_ids, rng = 1 << 15, np.random.default_rng(0)
    batches = [rng.zipf(1.3, 4096) % num_ids for _ in range(20)]
    tables = jnp.asarray(rng.integers(0, 3, 4096), jnp.int32)
    ended = []
    for kernels in ("xla", implementation):
        config = fj.EmbeddingConfig(
            embedding_dim=32,
            chunk_dim=8,
            num_entries=1 << 12,
            num_frames=1 << 13,
            num_tables=3,
            # Ranked by what is the same, whoever has added up the gradients.
            scorer=fj.scorers.frequency(),
            fallback=fallback,
            num_shared=512 * (fallback == "shared"),
            kernels=kernels,
        )
        store = fj.EmbeddingStore(config, OPTIMIZERS["adagrad"])

        def train(state, ids, store=store):
            state, handle, _ = store.admit(state, ids, tables=tables)
            vectors = store.gather(state, handle)
            return store.apply_gradients(state, handle, vectors - 0.1)[0]

        train = jax.jit(train, donate_argnums=0)
        prune = jax.jit(store.prune_step, donate_argnums=0)
        state = store.init(jax.random.key(0))
        for number, ids in enumerate(batches):
            state = train(state, jnp.asarray(ids, jnp.int32))
            if number % 5 == 4:
                state, _ = prune(state)
        store.check_invariants(state)
        ended.append(state)
    for left, right in zip(*map(jax.tree.leaves, ended), strict=True):
        if jnp.issubdtype(left.dtype, jnp.floating):
            np.testing.assert_allclose(left, right, **tolerance(20 * 4096))
        else:
            np.testing.assert_array_equal(left, right)
    assert np.any(np.asarray(ended[0].pool.values))
