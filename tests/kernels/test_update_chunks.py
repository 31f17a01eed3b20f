"""The kernels of `update_chunks`, interpreted, against the reference and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

import fiited_jax as fj
import pallas_kernels as pk
from fiited_jax import chunk_pool
from helpers import tolerance
from pallas_kernels import mosaic_tpu, triton

RACES = pltpu.InterpretParams(detect_races=True, dma_execution_mode="eager")
CHIPS = {
    "mosaic_tpu": AbstractDevice("TPU v6 lite", 1, "tpu"),
    "triton": AbstractDevice("NVIDIA H100 80GB HBM3", None, "cuda"),
}


@pytest.fixture(autouse=True)
def no_races(capfd):
    """A race is no error of the interpreter: it is printed."""
    yield
    assert "race" not in capfd.readouterr().out.lower()


@pytest.fixture
def small_blocks(monkeypatch):
    """Interpretation is slow by the row: more blocks of fewer rows."""
    monkeypatch.setattr(mosaic_tpu.update, "_BLOCK", 16)
    monkeypatch.setattr(triton, "_VALUES", 64)


def step(windows, operands):
    """Momentum, and a learning rate that is a scalar; refuses what is above 50."""
    (values, traces), (grads, rate) = windows, operands
    traces = 0.5 * traces + grads
    values = values - rate * traces
    worst = jnp.max(jnp.abs(values), axis=-1, keepdims=True)
    return (values, traces), worst <= 50


def make_case(chunk_dim, num_rows, null_share=0.3, seed=0):
    """Two arrays of 8 lines, distinct frames in no order, and gradients."""
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(8, 128)).astype(np.float32) for _ in range(2)]
    for array in arrays:
        array.reshape(-1)[:chunk_dim] = 0
    num_frames = 1024 // chunk_dim
    frames = 1 + rng.permutation(num_frames - 1)[:num_rows]
    frames = np.resize(frames, num_rows)
    seen = np.isin(np.arange(num_rows), np.unique(frames, return_index=True)[1])
    frames = np.where(seen & (rng.random(num_rows) >= null_share), frames, 0)
    grads = rng.normal(size=(num_rows, chunk_dim)).astype(np.float32)
    grads[::7] *= 1000  # some are refused
    return tuple(map(jnp.asarray, arrays)), jnp.int32(frames), jnp.asarray(grads)


def by_hand(arrays, frames, grads, rate):
    """What `step` does, frame by frame."""
    chunk_dim = grads.shape[1]
    values, traces = (np.array(a).reshape(-1, chunk_dim) for a in arrays)
    accepted = []
    for frame, grad in zip(np.asarray(frames), np.asarray(grads), strict=True):
        trace = np.float32(0.5) * traces[frame] + grad
        value = values[frame] - np.float32(rate) * trace
        accepted.append(np.abs(value).max() <= 50)
        if frame and accepted[-1]:
            values[frame], traces[frame] = value, trace
    return values, traces, np.array(accepted, bool)


def check(got, case, rate):
    (values, traces), accepted = got
    arrays, frames, grads = case
    expected = by_hand(arrays, frames, grads, rate)
    np.testing.assert_array_equal(accepted, expected[2])
    for array, wanted in zip((values, traces), expected, strict=False):
        assert array.shape == (8, 128)
        flat = np.asarray(array).reshape(wanted.shape)
        np.testing.assert_allclose(flat, wanted, **tolerance(3))
        assert not np.any(flat[0])


SHAPES = [(1, 40), (4, 40), (16, 33), (16, 1), (16, 0), (128, 7)]


@pytest.mark.parametrize(("chunk_dim", "num_rows"), SHAPES)
def test_the_reference_does_what_is_said(chunk_dim, num_rows):
    case, rate = make_case(chunk_dim, num_rows), jnp.float32(0.25)
    arrays, frames, grads = case
    widths = (chunk_dim, chunk_dim)
    check(pk.update_chunks(arrays, frames, (grads, rate), step, widths), case, 0.25)


@pytest.mark.parametrize(("chunk_dim", "num_rows"), SHAPES)
@pytest.mark.parametrize("kernels", [mosaic_tpu, triton])
def test_kernels_do_what_is_said(kernels, chunk_dim, num_rows, small_blocks):
    case, rate = make_case(chunk_dim, num_rows), jnp.float32(0.25)
    arrays, frames, grads = case
    interpret = RACES if kernels is mosaic_tpu else True
    widths = (chunk_dim, chunk_dim)
    got = kernels.update_chunks(
        arrays, frames, (grads, rate), step, widths, interpret=interpret
    )
    check(got, case, 0.25)


@pytest.mark.parametrize("null_share", [0.0, 1.0])
def test_mosaic_tpu_with_many_frames_of_a_line_and_none(null_share, small_blocks):
    case = make_case(4, 200, null_share)  # lines go on from block to block
    arrays, frames, grads = case
    got = mosaic_tpu.update_chunks(
        arrays, frames, (grads, jnp.float32(0.1)), step, (4, 4), interpret=RACES
    )
    check(got, case, 0.1)


def test_mosaic_tpu_steps_lines_of_several_kinds(small_blocks):
    """Scalars and short values go on over blocks in which lines of chunks end."""
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(8, 128)), jnp.float32)
    counts = jnp.asarray(rng.integers(0, 9, 256), jnp.int32)
    shorts = jnp.asarray(rng.integers(0, 1 << 16, (8, 128)), jnp.uint16)
    frames = rng.permutation(np.arange(1, 256))[:70]
    frames[:3] = [0, 255, 0]
    grads = jnp.asarray(rng.normal(size=(70, 4)), jnp.float32)

    def decay(windows, operands):
        (values, counts, shorts), (grads,) = windows, operands
        power = 0.5 ** counts[:, 0]
        accepts = grads[:, :1] > -1
        return (values - power[:, None] * grads, counts + 1, shorts + 1), accepts

    arrays, widths = (values, counts, shorts), (4, 1, 4)
    arguments = arrays, jnp.int32(frames), (grads,), decay, widths
    got, accepts = mosaic_tpu.update_chunks(*arguments, interpret=RACES)
    expected, expected_accepts = pk.update_chunks(*arguments)
    np.testing.assert_array_equal(accepts, expected_accepts)
    np.testing.assert_allclose(got[0], expected[0], **tolerance(2))
    np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_array_equal(got[2], expected[2])
    assert got[2].dtype == jnp.uint16
    num_stepped = int(np.sum(np.asarray(accepts)[frames > 0]))
    assert int(jnp.sum(got[1] - counts)) == num_stepped > 40
    assert int(got[1][255] - counts[255]) == int(accepts[1])


def test_mosaic_tpu_in_blocks_of_their_real_size():
    case = make_case(16, 60)
    arrays, frames, grads = case
    got = mosaic_tpu.update_chunks(
        arrays, frames, (grads, jnp.float32(0.1)), step, (16, 16), interpret=RACES
    )
    check(got, case, 0.1)


OPTIMIZERS = {
    "adagrad": fj.sparse(optax.adagrad(0.5)),
    "adam": fj.sparse(optax.adam(0.1)),
    "rowwise_adagrad": fj.rowwise_adagrad(0.1),
    "scaled_sgd": fj.sparse(optax.sgd(0.1), table_scale=(1.0, 0.5)),
    "schedule": fj.sparse(optax.sgd, learning_rate=optax.linear_schedule(1.0, 0.1, 9)),
}


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels run here, interpreted; what they are called for is kept."""
    called = []

    def wrap(module, name, interpret):
        kernel = getattr(module, name)

        def run(*arguments):
            called.append((module, name))
            return kernel(*arguments, interpret=interpret)

        monkeypatch.setattr(module, name, run)

    for name in ("gather_chunks", "update_chunks"):
        wrap(triton, name, True)
        wrap(mosaic_tpu, name, RACES)
    wrap(triton, "probe_page_table", True)
    return called


ON_TPU = [
    ("mosaic_tpu", np.float32, "rowwise_adagrad"),
    ("mosaic_tpu", np.uint16, "adam"),
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
        np.testing.assert_allclose(got, expected, **tolerance(4))


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
        "num_entries": 32,
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
        # The pool and the shared pool, each by the kernels.
        num_pools = 1 + (fallback == "shared")
        names = [call[1] for call in interpreted]
        probes = ["probe_page_table"] * (kernels == "triton")
        assert names[:reads] == probes + ["gather_chunks"] * num_pools
        assert names.count("update_chunks") == num_pools
    assert np.count_nonzero(found[0]) > 20
    np.testing.assert_allclose(*found, **tolerance(3))


@pytest.mark.parametrize("kernels", sorted(CHIPS))
def test_the_step_of_a_store_lowers_for_its_platform(kernels):
    config = fj.EmbeddingConfig(
        embedding_dim=32, chunk_dim=16, num_entries=64, num_frames=65, kernels=kernels
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
    assert ("probe_page_table" in text) == (kernels == "triton")


LINES = jnp.zeros((4, 128))


@pytest.mark.parametrize(
    ("implementation", "arrays", "widths", "words"),
    [
        ("mosaic_tpu", (LINES, jnp.zeros(130)), (4, 1), r"lines of 128.*\(130,\)"),
        ("mosaic_tpu", (jnp.zeros((4, 384)),), (3,), r"lines of 128.*\(4, 384\)"),
        ("mosaic_tpu", (jnp.zeros(384),), (3,), r"widths that divide 128.*\(3,\)"),
        ("mosaic_tpu", (LINES.astype(jnp.int8),), (4,), "32-bit values.*int8"),
        ("mosaic_tpu", (LINES[:3].astype(jnp.uint16),), (4,), r"even.*\(3, 128\)"),
        ("triton", (jnp.zeros((4, 24)),), (24,), r"widths\[0\] that is a power.*24"),
        ("triton", (LINES.astype(jnp.complex64),), (4,), "got complex64"),
        ("mosaic_gpu", (LINES,), (4,), "'mosaic_gpu' is not available"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused(implementation, arrays, widths, words):
    with pytest.raises(NotImplementedError, match=words):
        pk.update_chunks(
            arrays,
            jnp.zeros(3, jnp.int32),
            (),
            lambda windows, _: (windows, jnp.ones((3, 1), bool)),
            widths,
            implementation=implementation,
        )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"frames": jnp.zeros(3)}, TypeError, "frames must be int32, got float32"),
        ({"frames": jnp.zeros((3, 1), jnp.int32)}, ValueError, r"shape \(n,\)"),
        ({"widths": (4, 4)}, ValueError, "one number per array, got 2 for 1"),
        ({"widths": (5,)}, ValueError, "width=5"),
        ({"operands": (jnp.zeros((2, 4)),)}, ValueError, r"\(3, k\).*\(2, 4\)"),
        ({"arrays": (), "widths": ()}, ValueError, "got 0 for 0 arrays"),
        ({"operands": (0.5,)}, TypeError, r"operands\[0\] must be an array, got 0.5"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    usual = {
        "arrays": (LINES,),
        "frames": jnp.zeros(3, jnp.int32),
        "operands": (),
        "update": lambda windows, _: (windows, jnp.ones((3, 1), bool)),
        "widths": (4,),
    }
    with pytest.raises(error, match=words):
        pk.update_chunks(**(usual | arguments))


def test_frames_out_of_range_write_nothing():
    arrays, frames, grads = make_case(16, 5, 0.0)
    bad = frames.at[1].set(-3).at[2].set(64).at[3].set(1 << 30)
    (values, _), _ = pk.update_chunks(
        arrays, bad, (grads, jnp.float32(0.1)), step, (16, 16)
    )
    written = np.any(np.asarray(values != arrays[0]).reshape(-1, 16), axis=1)
    assert set(np.flatnonzero(written)) <= {int(frames[0]), int(frames[4])}
    (again, _), _ = pk.update_chunks(
        arrays, jnp.zeros(5, jnp.int32), (grads, jnp.float32(0.1)), step, (16, 16)
    )
    np.testing.assert_array_equal(again, arrays[0])


@pytest.mark.parametrize("kernels", ["xla", "triton", "mosaic_tpu"])
def test_frames_that_one_array_does_not_have_write_nothing(
    kernels, interpreted, small_blocks
):
    arrays = (jnp.ones((2, 128)), jnp.ones((1, 128)))
    frames = jnp.int32([3, 9, -1, 16, 1 << 30])
    got, _ = pk.update_chunks(
        arrays,
        frames,
        (),
        lambda windows, _: (
            tuple(window + 1 for window in windows),
            jnp.ones((windows[0].shape[0], 1), bool),
        ),
        (16, 16),
        implementation=kernels,
    )
    for array, before in zip(got, arrays, strict=True):
        written = np.any(np.asarray(array != before).reshape(-1, 16), axis=1)
        assert np.flatnonzero(written).tolist() == [3]


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (lambda w, _: ((w[0][:, :2],), w[0][:, :1] > 0), r"windows \[\(3, 4\)\]"),
        (lambda w, _: ((w[0], w[0]), w[0][:, :1] > 0), r"returned \[\(3, 4\), \(3"),
        (lambda w, _: (w, w[0] > 0), r"bool\[3, 1\], returned bool\[3, 4\]"),
        (lambda w, _: (w, w[0][:1, :1] > 0), r"returned bool\[1, 1\]"),
        (lambda w, _: (w, w[0][:, 0] > 0), r"returned bool\[3\]"),
        (lambda w, _: (w, w[0][:, :1]), r"returned float32\[3, 1\]"),
    ],
)
def test_an_update_that_returns_something_else_is_refused(update, words):
    with pytest.raises(ValueError, match=words):
        pk.update_chunks((LINES,), jnp.zeros(3, jnp.int32), (), update, (4,))


def test_kernels_of_a_config_are_named():
    with pytest.raises(ValueError, match=r"kernels must be 'xla'.*got 'cuda'"):
        fj.EmbeddingConfig(
            embedding_dim=8, chunk_dim=4, num_entries=32, num_frames=9, kernels="cuda"
        )
