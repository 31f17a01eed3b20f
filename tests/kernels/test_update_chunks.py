"""The kernels of `update_chunks`, interpreted, against the reference and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chips import RACES, V6E
from jax.sharding import AbstractMesh, use_abstract_mesh

import pallas_kernels as pk
from helpers import tolerance
from pallas_kernels import mosaic_tpu, triton

pytestmark = pytest.mark.usefixtures("no_races")


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


LINES = jnp.zeros((4, 128))


@pytest.mark.parametrize(
    ("implementation", "arrays", "widths", "words"),
    [
        ("mosaic_tpu", (LINES, jnp.zeros(130)), (4, 1), r"lines of 128.*\(130,\)"),
        ("mosaic_tpu", (jnp.zeros((4, 384)),), (3,), r"lines of 128.*\(4, 384\)"),
        ("mosaic_tpu", (jnp.zeros(384),), (3,), r"widths that divide 128.*\(3,\)"),
        ("mosaic_tpu", (LINES.astype(jnp.int8),), (4,), "32-bit values.*int8"),
        ("mosaic_tpu", (LINES.astype(jnp.float16),), (4,), "32-bit values.*float16"),
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


def test_chunks_of_any_dtype_are_cast(interpreted):
    pool, frames = jnp.zeros((4, 128)), jnp.int32([9, 31])
    for chunks in (jnp.ones((2, 16), bool), jnp.full((2, 16), 1.0, jnp.float8_e5m2)):
        new = pk.scatter_chunks(pool, frames, chunks, implementation="triton")
        expected = np.isin(np.arange(32), frames)[:, None] * np.ones(16)
        np.testing.assert_array_equal(new.reshape(-1, 16), expected)
    assert len(interpreted) == 2


@pytest.mark.parametrize("name", ["mosaic_gpu", "cuda"])
def test_a_scatter_by_another_name_is_refused(name):
    with pytest.raises(NotImplementedError, match=f"'{name}' is not available"):
        pk.scatter_chunks(
            LINES, jnp.zeros(3, jnp.int32), jnp.ones((3, 4)), implementation=name
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


@pytest.mark.parametrize("implementation", ["xla", "triton", "mosaic_tpu"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, jnp.bfloat16])
def test_chunks_are_overwritten(implementation, dtype, interpreted, small_blocks):
    rng = np.random.default_rng(0)
    pool = jnp.asarray(rng.integers(1, 1000, (4, 128)), dtype)
    frames = jnp.int32([[9, 0, 31], [-1, 32, 8]])
    chunks = jnp.asarray(rng.integers(1, 1000, (2, 3, 16)), jnp.float32)
    got = pk.scatter_chunks(pool, frames, chunks, implementation=implementation)
    expected = np.array(pool).reshape(-1, 16)
    expected[[9, 31, 8]] = chunks[[0, 0, 1], [0, 2, 2]]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.reshape(-1, 16), expected)
    assert len(np.unique(expected)) > 99
    assert len(interpreted) == (implementation != "xla")


def test_the_gradient_of_a_scatter_is_that_of_the_reference(interpreted):
    pool, frames = jnp.ones((4, 128)), jnp.int32([[9, 0, 31], [-1, 32, 8]])
    weights = jnp.arange(512.0).reshape(4, 128)

    def loss(pool, chunks, implementation):
        new = pk.scatter_chunks(pool, frames, chunks, implementation=implementation)
        return jnp.sum(new * weights)

    got, expected = (
        jax.grad(loss, (0, 1))(pool, jnp.ones((2, 3, 16)), name)
        for name in ("triton", "xla")
    )
    for left, right in zip(got, expected, strict=True):
        assert 0 < np.count_nonzero(left) < left.size
        np.testing.assert_array_equal(left, right)
    assert len(interpreted) == 1


def test_a_scatter_of_short_values_lowers_for_its_platform():
    def scatter(pool, frames, chunks):
        return pk.scatter_chunks(pool, frames, chunks, implementation="mosaic_tpu")

    pool, frames = jnp.zeros((4, 128), jnp.uint16), jnp.zeros(300, jnp.int32)
    with use_abstract_mesh(AbstractMesh((1,), ("device",), abstract_device=V6E)):
        traced = jax.jit(scatter).trace(pool, frames, jnp.zeros((300, 16), pool.dtype))
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "update_chunks" in text


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
