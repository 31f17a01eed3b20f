"""The kernels for SparseCores, step by step in NumPy: JAX does not interpret them."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chips import V5E, V6E
from jax.sharding import AbstractMesh, use_abstract_mesh

import pallas_kernels as pk
from pallas_kernels import sparsecore

NUM_CORES, NUM_SUBCORES = 2, 3


class Ref:
    """Memory: what a slice or a list of row numbers picks can be copied to and from."""

    def __init__(self, array, rows=None, kept=None):
        self.array, self.rows, self.kept = array, rows, kept

    @property
    def at(self):
        return _At(self.array)


class _At:
    def __init__(self, array):
        self.array = array

    def __getitem__(self, where):
        if isinstance(where, slice):
            return Ref(self.array[where])
        numbers, ignored = where
        assert numbers.array.shape == (128,)  # the longest list
        kept = numbers.array != ignored
        assert not np.any(numbers.array[kept] < 0)
        return Ref(self.array, numbers.array[kept], kept)


def copy(source, target):
    if source.rows is not None:
        target.array[source.kept] = source.array[source.rows]
    elif target.rows is not None:
        assert len(np.unique(target.rows)) == target.rows.size  # no row twice
        target.array[target.rows] = source.array[target.kept]
    else:
        target.array[...] = source.array


def loop(low, high):
    def run(body):
        for index in range(low, high):
            body(index)

    return run


@pytest.fixture
def by_hand(monkeypatch):
    """Subcores run one after the other; returns the kernels that did, by name."""
    where, names = {}, []

    def kernel(body, *, out_type, scratch_types, name, **_):
        def call(*arguments):
            names.append(name)
            arrays = [np.array(one[...]) for one in arguments]
            outs = jax.tree.map(
                lambda one: np.full(one.shape, 77, one.dtype), jax.tree.leaves(out_type)
            )
            workers = itertools.product(range(NUM_CORES), range(NUM_SUBCORES))
            for where["core"], where["subcore"] in workers:
                scratch = [np.full(shape, 55, dtype) for shape, dtype in scratch_types]
                body(*map(Ref, (*arrays, *outs, *scratch)))
            for one, array in zip(arguments, arrays, strict=True):
                if isinstance(one, jax.Ref):
                    one[...] = jnp.asarray(array)
            return jnp.asarray(outs[0]) if outs else None

        return call

    chip = types.SimpleNamespace(num_cores=NUM_CORES, num_subcores=NUM_SUBCORES)
    parts = {
        "pl": {
            "kernel": kernel,
            "loop": loop,
            "ds": lambda start, size: slice(start, start + size),
        },
        "pltpu": {
            "sync_copy": copy,
            "VMEM": lambda shape, dtype: (shape, dtype),
            "CompilerParams": dict,
            "get_tpu_info": lambda: types.SimpleNamespace(sparse_core=chip),
        },
        "plsc": {
            "VectorSubcoreMesh": dict,
            "Indices": lambda numbers, ignored_value: (numbers, ignored_value),
        },
    }
    for name, part in parts.items():
        monkeypatch.setattr(sparsecore, name, types.SimpleNamespace(**part))
    monkeypatch.setattr(sparsecore.lax, "axis_index", where.__getitem__)
    return names


def make_lines(num_lines, chunk_dim, seed=0):
    lines = np.random.default_rng(seed).normal(size=(num_lines, 128))
    lines.reshape(-1)[:chunk_dim] = 0
    return jnp.asarray(lines, jnp.float32)


def make_frames(shape, num_frames, null_share):
    rng = np.random.default_rng(1)
    frames = rng.integers(0, num_frames, shape)
    return jnp.int32(np.where(rng.random(shape) < null_share, 0, frames))


@pytest.mark.parametrize("shape", [(1700,), (2, 3, 5)])
@pytest.mark.parametrize("chunk_dim", [1, 4, 8, 16, 128])
def test_subcores_read_the_chunks_of_their_blocks(chunk_dim, shape, by_hand):
    pool = make_lines(16, chunk_dim)
    frames = make_frames(shape, 2048 // chunk_dim, 0.2)
    read = pk.gather_chunks(pool, frames, chunk_dim, implementation="sparsecore")
    np.testing.assert_array_equal(read, pk.gather_chunks(pool, frames, chunk_dim))
    assert by_hand == ["gather_chunks"]


@pytest.mark.parametrize("chunk_dim", [2, 16])
def test_what_stands_in_for_null_frames_is_read_by_the_same_kernel(chunk_dim, by_hand):
    pool, others = make_lines(16, chunk_dim), make_lines(4, chunk_dim, 1)
    frames = make_frames((40, 5), 2048 // chunk_dim, 0.6)
    fallback = others, make_frames((40, 5), 512 // chunk_dim, 0.3)[::-1]
    read, expected = (
        pk.gather_chunks(
            pool, frames, chunk_dim, fallback=fallback, implementation=name
        )
        for name in ("sparsecore", "xla")
    )
    np.testing.assert_array_equal(read, expected)
    assert by_hand == ["gather_chunks"]


def test_a_null_frame_is_not_read(by_hand):
    pool = make_lines(4, 16).at[0].set(jnp.nan)
    frames = jnp.zeros(9, jnp.int32)
    read = pk.gather_chunks(pool, frames, 16, implementation="sparsecore")
    np.testing.assert_array_equal(read, np.zeros((9, 16)))


@pytest.mark.parametrize(
    ("chunk_dim", "num_rows"), [(4, 40), (16, 900), (128, 8), (128, 7)]
)
def test_frames_step_where_they_lie(chunk_dim, num_rows, by_hand):
    rng, num_frames = np.random.default_rng(0), 16384 // chunk_dim
    arrays = make_lines(128, chunk_dim), jnp.int32(rng.integers(0, 9, 4096 + 128))
    frames = 1 + rng.permutation(num_frames - 1)[:num_rows]
    frames[::3] = [-3, 0, num_frames][num_rows % 3]  # nothing is written there
    grads = jnp.asarray(rng.normal(size=(num_rows, chunk_dim)), jnp.float32)

    def step(windows, operands):
        (values, counts), (grads, rate) = windows, operands
        return (values - rate * grads, counts + 1.0), grads[:, :1] > -1

    got, expected = (
        pk.update_chunks(
            arrays,
            jnp.int32(frames),
            (grads, jnp.float32(0.5)),
            step,
            (chunk_dim, 1),
            implementation=name,
        )
        for name in ("sparsecore", "xla")
    )
    for left, right in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_array_equal(left, right)
    assert np.any(np.asarray(got[0][1] != arrays[1]))
    assert by_hand == ["gather_chunks"] * 2 + ["update_chunks"] * 2


def test_chunks_are_overwritten(by_hand):
    pool, frames = make_lines(4, 16), jnp.int32([[9, 0, 31], [-1, 32, 8]])
    chunks = jnp.arange(96).reshape(2, 3, 16)
    got = pk.scatter_chunks(pool, frames, chunks, implementation="sparsecore")
    np.testing.assert_array_equal(got, pk.scatter_chunks(pool, frames, chunks))
    assert by_hand[-1] == "update_chunks"


def lower(function, chip, *arguments):
    with use_abstract_mesh(AbstractMesh((1,), ("device",), abstract_device=chip)):
        traced = jax.jit(function).trace(*arguments)
        return traced.lower(lowering_platforms=("tpu",))


def gather(pool, frames):
    return pk.gather_chunks(pool, frames, 4, implementation="sparsecore")


@pytest.mark.parametrize("shape", [(300,), (2, 3, 5), (5000,), (0, 3)])
def test_it_lowers_for_its_chips(shape):
    lowered = lower(gather, V6E, jnp.zeros((4, 128)), jnp.zeros(shape, jnp.int32))
    assert ("gather_chunks" in lowered.as_text()) == (0 not in shape)
    assert lowered.out_info.shape == (*shape, 4)


@pytest.mark.parametrize("num_rows", [0, 300])
def test_writing_lowers_too(num_rows):
    def scatter(pool, frames, chunks):
        return pk.scatter_chunks(pool, frames, chunks, implementation="sparsecore")

    frames, chunks = jnp.zeros(num_rows, jnp.int32), jnp.zeros((num_rows, 16))
    lowered = lower(scatter, V6E, jnp.zeros((4, 128)), frames, chunks)
    assert ("update_chunks" in lowered.as_text()) == (num_rows > 0)


@pytest.mark.parametrize(
    ("chip", "pool", "words"),
    [
        (V5E, jnp.zeros((4, 128)), "a chip with SparseCores"),
        (V6E, jnp.zeros((4, 64)), "'sparsecore' needs a pool of lines of 128"),
        (V6E, jnp.zeros((4, 128), jnp.bfloat16), "32-bit values.*bfloat16"),
    ],
)
def test_what_it_cannot_do_is_refused(chip, pool, words):
    with pytest.raises(NotImplementedError, match=words):
        lower(gather, chip, pool, jnp.zeros(3, jnp.int32))


def test_it_needs_lines_of_a_fallback_too():
    def gather_more(pool, frames):
        others = jnp.zeros((4, 64)), frames
        return pk.gather_chunks(
            pool, frames, 4, fallback=others, implementation="sparsecore"
        )

    with pytest.raises(NotImplementedError, match="needs a fallback of lines of 128"):
        lower(gather_more, V6E, jnp.zeros((4, 128)), jnp.zeros(3, jnp.int32))


def test_a_chip_that_is_no_tpu_is_refused():
    with pytest.raises(NotImplementedError, match=r"a chip with SparseCores.*cpu"):
        gather(jnp.zeros((4, 128)), jnp.zeros(3, jnp.int32))
