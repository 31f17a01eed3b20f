import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chips import H100
from jax.sharding import AbstractMesh, use_abstract_mesh

import pallas_kernels as pk
from pallas_kernels import mosaic_gpu

# Not public yet. It simulates memories and barriers, but makes copies at once: that one
# is not waited for it does not see.
params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
INTERPRET = params.InterpretGPUParams(detect_races=True)


def make_pool(num_frames, chunk_dim, dtype=jnp.float32):
    values = np.random.default_rng(0).normal(size=(num_frames, chunk_dim), scale=99)
    values[0] = 0
    return jnp.asarray(values).astype(dtype)


def make_frames(shape, num_frames, null_share=0.3):
    rng = np.random.default_rng(1)
    frames = rng.integers(1, num_frames, shape).astype(np.int32)
    return jnp.asarray(np.where(rng.random(shape) < null_share, 0, frames))


@pytest.mark.parametrize(
    ("chunk_dim", "dtype"),
    [(32, "float32"), (96, "float32"), (256, "float32"), (64, "uint16"), (128, "int8")],
)
@pytest.mark.parametrize("shape", [(), (5,), (3, 7)])
def test_it_reads_what_the_reference_reads(chunk_dim, dtype, shape, monkeypatch):
    num_bytes = chunk_dim * jnp.dtype(dtype).itemsize
    monkeypatch.setattr(mosaic_gpu, "_BLOCK_BYTES", 8 * num_bytes)
    pool, frames = make_pool(30, chunk_dim, dtype), make_frames(shape, 30)
    read = mosaic_gpu.gather_chunks(pool, frames, chunk_dim, interpret=INTERPRET)
    expected = pk.gather_chunks(pool, frames, chunk_dim)
    assert read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected)


def test_what_stands_in_for_null_frames_is_read_in_the_same_pass(monkeypatch):
    monkeypatch.setattr(mosaic_gpu, "_BLOCK_BYTES", 1024)
    pool, frames = make_pool(30, 32), make_frames((3, 7), 30)
    fallback = -make_pool(9, 32), make_frames((3, 7), 9)[::-1]
    read = mosaic_gpu.gather_chunks(pool, frames, 32, fallback, interpret=INTERPRET)
    expected = pk.gather_chunks(pool, frames, 32, fallback=fallback)
    assert np.any(expected < 0)
    np.testing.assert_array_equal(read, expected)


def test_nothing_is_read_for_no_frames():
    read = mosaic_gpu.gather_chunks(make_pool(9, 32), jnp.zeros((0, 4), jnp.int32), 32)
    assert read.shape == (0, 4, 32)


def test_a_pool_of_lines_or_flat_is_read_alike(monkeypatch):
    monkeypatch.setattr(mosaic_gpu, "_BLOCK_BYTES", 1024)
    pool, frames = make_pool(32, 32), make_frames((11,), 32)
    expected = pk.gather_chunks(pool, frames, 32)
    for shape in ((-1,), (8, 128)):
        read = mosaic_gpu.gather_chunks(
            pool.reshape(shape), frames, 32, interpret=INTERPRET
        )
        np.testing.assert_array_equal(read, expected)


def test_the_gradient_is_that_of_the_reference(monkeypatch):
    monkeypatch.setattr(
        mosaic_gpu,
        "gather_chunks",
        functools.partial(mosaic_gpu.gather_chunks, interpret=INTERPRET),
    )
    monkeypatch.setattr(mosaic_gpu, "_BLOCK_BYTES", 1024)
    pool, frames = make_pool(30, 32), make_frames((3, 3), 30)
    weights = jnp.arange(9 * 32.0).reshape(3, 3, 32)

    def loss(pool, implementation):
        read = pk.gather_chunks(pool, frames, 32, implementation=implementation)
        return jnp.sum(read * weights)

    value, grad = jax.value_and_grad(loss)(pool, "mosaic_gpu")
    expected, expected_grad = jax.value_and_grad(loss)(pool, "xla")
    assert value == expected
    np.testing.assert_array_equal(grad, expected_grad)


def test_every_copy_is_waited_for(monkeypatch):
    arrivals, barrier = [], mosaic_gpu.plgpu.Barrier

    def note(num_arrivals):
        arrivals.append(num_arrivals)
        return barrier(num_arrivals=num_arrivals)

    monkeypatch.setattr(mosaic_gpu.plgpu, "Barrier", note)
    monkeypatch.setattr(mosaic_gpu, "_BLOCK_BYTES", 64 * 128)
    text = str(
        jax.make_jaxpr(lambda p, f: mosaic_gpu.gather_chunks(p, f, 32))(
            make_pool(30, 32), make_frames((300,), 30)
        )
    )
    assert re.findall(
        "copy_gmem_to_smem|barrier_wait|copy_smem_to_gmem|wait_smem", text
    ) == ["copy_gmem_to_smem", "barrier_wait", "copy_smem_to_gmem", "wait_smem"]
    assert arrivals == [64]
    assert "scan" in text
    assert "length=64" in text


def test_it_lowers_for_a_hopper_gpu():

    def gather(pool, frames):
        return pk.gather_chunks(pool, frames, 32, implementation="mosaic_gpu")

    with use_abstract_mesh(AbstractMesh((1,), ("device",), abstract_device=H100)):
        traced = jax.jit(gather).trace(make_pool(99, 32), make_frames((300,), 99))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "gather_chunks" in text
    assert "mosaic_gpu" in text


@pytest.mark.parametrize(
    ("chunk_dim", "dtype", "words"),
    [
        (16, "float32", "a multiple of 128 bytes, got chunk_dim 16 and 64 bytes"),
        (32, "uint16", "a multiple of 128 bytes, got chunk_dim 32 and 64 bytes"),
        (512, "float32", "at most 256 .* got chunk_dim 512"),
    ],
)
def test_what_it_cannot_copy_is_refused(chunk_dim, dtype, words):
    pool, frames = make_pool(4, chunk_dim, dtype), jnp.zeros(3, jnp.int32)
    with pytest.raises(NotImplementedError, match=words):
        pk.gather_chunks(pool, frames, chunk_dim, implementation="mosaic_gpu")
