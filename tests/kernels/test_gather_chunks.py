"""The kernels of `gather_chunks`, interpreted, against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chips import H100, RACES, V6E
from jax.sharding import AbstractMesh, use_abstract_mesh

import pallas_kernels as pk
from pallas_kernels import mosaic_tpu, triton

pytestmark = pytest.mark.usefixtures("no_races")
LINES = jnp.zeros((4, 128))


def make_pool(chunk_dim, dtype=np.float32):
    """A pool of 512 values of which none but those of the null frame are zero."""
    rng = np.random.default_rng(chunk_dim)
    pool = (1 + rng.integers(0, 1000, (4, 128))).astype(dtype)
    pool.reshape(-1)[:chunk_dim] = 0
    return jnp.asarray(pool)


def make_frames(shape, chunk_dim, null_share=0.3):
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 512 // chunk_dim, shape)
    return jnp.asarray(np.where(rng.random(shape) < null_share, 0, frames), jnp.int32)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 6), (32,), (0,), (3, 0)])
@pytest.mark.parametrize("chunk_dim", [1, 16, 128])
def test_mosaic_tpu_reads_what_the_reference_reads(chunk_dim, shape, small_blocks):
    pool, frames = make_pool(chunk_dim), make_frames(shape, chunk_dim)
    read = mosaic_tpu.gather_chunks(pool, frames, chunk_dim, interpret=RACES)
    np.testing.assert_array_equal(read, pk.gather_chunks(pool, frames, chunk_dim))


@pytest.mark.parametrize(
    ("chunk_dim", "dtype"),
    [
        (1, np.uint16),
        (16, np.uint16),
        (128, np.uint16),
        (16, jnp.bfloat16),
        (4, np.int16),
    ],
)
def test_mosaic_tpu_reads_two_short_lines_at_once(chunk_dim, dtype, small_blocks):
    pool = make_pool(chunk_dim, dtype)
    frames = make_frames((37,), chunk_dim)
    read = mosaic_tpu.gather_chunks(pool, frames, chunk_dim, interpret=RACES)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pk.gather_chunks(pool, frames, chunk_dim))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("null_share", [0.0, 1.0])
def test_mosaic_tpu_with_all_frames_and_none(null_share, dtype, small_blocks):
    pool, frames = make_pool(4, dtype), make_frames((20,), 4, null_share)
    read = mosaic_tpu.gather_chunks(pool, frames, 4, interpret=RACES)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pk.gather_chunks(pool, frames, 4))


@pytest.mark.parametrize("shape", [(5,), (7, 400), (2, 3, 50), (0,), (3, 0)])
@pytest.mark.parametrize("chunk_dim", [1, 2, 16, 128])
def test_triton_reads_what_the_reference_reads(chunk_dim, shape):
    pool, frames = make_pool(chunk_dim), make_frames(shape, chunk_dim)
    read = triton.gather_chunks(pool, frames, chunk_dim, interpret=True)
    np.testing.assert_array_equal(read, pk.gather_chunks(pool, frames, chunk_dim))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.uint16, np.int32])
def test_triton_copies_other_dtypes(dtype):
    pool, frames = make_pool(8, dtype), make_frames((60,), 8)
    read = triton.gather_chunks(pool, frames, 8, interpret=True)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pk.gather_chunks(pool, frames, 8))


def test_mosaic_tpu_in_blocks_of_their_real_size():
    pool, frames = make_pool(16), make_frames((300,), 16)
    read = mosaic_tpu.gather_chunks(pool, frames, 16, interpret=RACES)
    np.testing.assert_array_equal(read, pk.gather_chunks(pool, frames, 16))


@pytest.mark.parametrize("kernels", [mosaic_tpu, triton])
def test_a_null_frame_is_zeros(kernels, small_blocks):
    pool = make_pool(4).at[0, :4].set(np.nan)
    interpret = RACES if kernels is mosaic_tpu else True
    read = kernels.gather_chunks(pool, jnp.zeros(9, jnp.int32), 4, interpret=interpret)
    np.testing.assert_array_equal(read, np.zeros((9, 4)))


@pytest.mark.parametrize(
    ("chunk_dim", "frames", "never"),
    [
        (128, [0, 3, 0, 1, 2, 0], [0]),  # line 0, of null frames
        (16, [26, 25, 31, 0, 27, 3], [1, 2]),  # where neighbours would arrive
    ],
)
def test_mosaic_tpu_copies_no_more_than_it_must(
    chunk_dim, frames, never, small_blocks, monkeypatch
):
    def lines_at(number, dtype):  # a copy from or to so far is an error
        for one in never:
            number = jnp.where(number == one, 1 << 20, number)
        return at(number, dtype)

    at = mosaic_tpu.halves.lines_at
    monkeypatch.setattr(mosaic_tpu.gather, "lines_at", lines_at)
    pool, frames = make_pool(chunk_dim), jnp.int32(frames)
    read = mosaic_tpu.gather_chunks(pool, frames, chunk_dim, interpret=RACES)
    np.testing.assert_array_equal(read, pk.gather_chunks(pool, frames, chunk_dim))


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_mosaic_tpu_reads_runs_of_two_pools(dtype, small_blocks):
    """Neighbours in a line, over the ends of lines, blocks and pools."""
    pool = make_pool(4, dtype)
    starts = jnp.int32([3, 30, 62, 1, 90, 62, 61])
    lengths = jnp.int32([8, 5, 0, 7, 8, 8, 3])
    others = jnp.roll(pool, 5, axis=1).at[0, :4].set(0)
    fallback = others, pk.reference.frames_of_runs(starts + 2, 8 + 0 * starts, 8)
    expected = pk.gather_runs(pool, starts, lengths, 4, 8, fallback=fallback)
    frames = pk.reference.frames_of_runs(starts, lengths, 8)
    read = mosaic_tpu.gather_chunks(pool, frames, 4, fallback, interpret=RACES)
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("kernels", [mosaic_tpu, triton])
@pytest.mark.parametrize(("chunk_dim", "dtype"), [(4, np.float32), (16, np.uint16)])
def test_what_stands_in_for_null_frames_is_read_in_the_same_pass(
    kernels, chunk_dim, dtype, small_blocks
):
    pool, frames = make_pool(chunk_dim, dtype), make_frames((3, 13), chunk_dim, 0.6)
    others = jnp.roll(pool[:2], 7, axis=1).at[0, :chunk_dim].set(0)
    other_frames = make_frames((3, 13), 2 * chunk_dim)
    interpret = RACES if kernels is mosaic_tpu else True
    read = kernels.gather_chunks(
        pool, frames, chunk_dim, (others, other_frames), interpret=interpret
    )
    own, other = (
        np.asarray(lines).reshape(-1, chunk_dim)[np.asarray(listed)]
        for lines, listed in ((pool, frames), (others, other_frames))
    )
    expected = np.where(frames[..., None] == 0, other, own)
    np.testing.assert_array_equal(read, expected)
    again = pk.gather_chunks(pool, frames, chunk_dim, fallback=(others, other_frames))
    np.testing.assert_array_equal(again, expected)
    assert len(np.unique(np.any(expected, axis=-1))) == 2  # some have neither


@pytest.mark.parametrize("implementation", ["xla", "mosaic_tpu", "triton"])
def test_runs_are_read_chunk_by_chunk(implementation, interpreted, small_blocks):
    pool = make_pool(16)
    starts, lengths = jnp.int32([5, 30, 1, 28]), jnp.int32([3, 2, 0, 4])
    fallback = pool[:1], jnp.int32(np.arange(16).reshape(4, 4) % 8)
    read = pk.gather_runs(
        pool, starts, lengths, 16, 4, fallback=fallback, implementation=implementation
    )
    values, expected = np.asarray(pool).reshape(-1, 16), np.zeros((4, 4, 16))
    for row, column in np.ndindex(4, 4):
        is_held = column < lengths[row]
        own = (
            values[starts[row] + column]
            if is_held
            else values[fallback[1][row, column]]
        )
        expected[row, column] = own
    np.testing.assert_array_equal(read, expected)
    assert len(interpreted) == (implementation != "xla")


@pytest.mark.parametrize("implementation", ["mosaic_tpu", "triton"])
def test_the_gradient_is_that_of_the_reference(
    implementation, small_blocks, monkeypatch
):
    kernels = mosaic_tpu if implementation == "mosaic_tpu" else triton
    interpret = RACES if implementation == "mosaic_tpu" else True
    monkeypatch.setattr(
        kernels,
        "gather_chunks",
        functools.partial(kernels.gather_chunks, interpret=interpret),
    )
    pool, frames = make_pool(4), make_frames((3, 6), 4)
    weights, other_frames = jnp.arange(72.0).reshape(3, 6, 4), frames[::-1]

    def loss(pools, implementation):
        pool, others = pools
        read = pk.gather_chunks(pool, frames, 4, implementation=implementation)
        both = pk.gather_chunks(
            pool,
            frames,
            4,
            fallback=(others, other_frames),
            implementation=implementation,
        )
        return jnp.sum((read + 2 * both) * weights)

    value, grads = jax.value_and_grad(loss)((pool, -pool), implementation)
    expected, expected_grads = jax.value_and_grad(loss)((pool, -pool), "xla")
    assert value == expected
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert np.any(np.asarray(grad))
        np.testing.assert_array_equal(grad, expected_grad)


@pytest.mark.parametrize(
    ("implementation", "chip"),
    [
        ("mosaic_tpu", V6E),
        ("triton", H100),
    ],
)
def test_it_lowers_for_its_platform(implementation, chip):
    def gather(pool, frames):
        return pk.gather_chunks(pool, frames, 16, implementation=implementation)

    pool, frames = make_pool(16), make_frames((300,), 16)
    with use_abstract_mesh(AbstractMesh((1,), ("device",), abstract_device=chip)):
        traced = jax.jit(gather).trace(pool, frames)
        text = traced.lower(lowering_platforms=(chip.platform,)).as_text()
    assert "gather_chunks" in text


@pytest.mark.parametrize(
    ("implementation", "pool", "chunk_dim", "words"),
    [
        ("mosaic_tpu", jnp.zeros(512), 4, r"lines of 128 values, got shape \(512,\)"),
        (
            "mosaic_tpu",
            jnp.zeros((4, 24)),
            8,
            r"lines of 128 values, got shape \(4, 24",
        ),
        ("mosaic_tpu", jnp.zeros((4, 128), jnp.int8), 4, "32-bit.*int8"),
        ("mosaic_tpu", jnp.zeros((3, 128), jnp.bfloat16), 4, r"even.*\(3, 128\)"),
        ("triton", jnp.zeros((4, 24)), 24, "power of 2, got 24"),
        ("triton", jnp.zeros((4, 128), jnp.complex64), 4, "integers.*got complex64"),
        ("cuda", jnp.zeros(512), 4, "'cuda' is not available"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused(implementation, pool, chunk_dim, words):
    with pytest.raises(NotImplementedError, match=words):
        pk.gather_chunks(
            pool, jnp.zeros(3, jnp.int32), chunk_dim, implementation=implementation
        )


@pytest.mark.parametrize(
    ("kernels", "num_lines", "num_frames"),
    [(triton, 1 << 24, 3), (triton, 4, 1 << 24), (mosaic_tpu, 1 << 24, 3)],
)
def test_what_int32_does_not_number_is_refused(kernels, num_lines, num_frames):
    pool = jax.ShapeDtypeStruct((num_lines, 128), jnp.float32)
    frames = jax.ShapeDtypeStruct((num_frames,), jnp.int32)
    with pytest.raises(NotImplementedError, match="fewer than 2"):
        jax.eval_shape(lambda p, f: kernels.gather_chunks(p, f, 128), pool, frames)


@pytest.mark.parametrize(
    ("others", "frames", "error", "words"),
    [
        (LINES, jnp.zeros((2, 1), jnp.int32), ValueError, r"\(2,\), got.*\(2, 1\)"),
        (LINES, jnp.zeros(2), TypeError, "frames of fallback must be int32, got float"),
        (LINES[:, :6], jnp.zeros(2, jnp.int32), ValueError, "of fallback.*width=4"),
        (
            LINES.astype(jnp.int32),
            jnp.zeros(2, jnp.int32),
            ValueError,
            "float32 values.*got int32",
        ),
    ],
)
def test_a_fallback_that_does_not_fit_is_refused(others, frames, error, words):
    numbers = jnp.zeros(2, jnp.int32)
    for implementation in ("xla", "triton"):
        with pytest.raises(error, match=words):
            pk.gather_chunks(
                LINES,
                numbers,
                4,
                fallback=(others, frames),
                implementation=implementation,
            )
    with pytest.raises(TypeError, match="must be a tuple"):
        pk.gather_chunks(LINES, numbers, 4, fallback=others)


def test_mosaic_tpu_needs_lines_of_a_fallback_too():
    frames = jnp.zeros(2, jnp.int32)
    with pytest.raises(NotImplementedError, match="needs a fallback of lines of 128"):
        pk.gather_chunks(
            LINES,
            frames,
            4,
            fallback=(jnp.zeros((4, 64)), frames),
            implementation="mosaic_tpu",
        )


def test_a_fallback_of_runs_has_a_frame_per_chunk():
    starts = jnp.ones(2, jnp.int32)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), got.*\(2,\)"):
        pk.gather_runs(LINES, starts, starts, 4, 3, fallback=(LINES, starts))
