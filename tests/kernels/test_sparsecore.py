"""The SparseCore kernel: its body step by step, as JAX does not interpret it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chips import V5E, V6E
from jax import lax
from jax.sharding import AbstractMesh, use_abstract_mesh

import pallas_kernels as pk
from pallas_kernels import sparsecore


class Ref:
    """An array that is read and written in place."""

    def __init__(self, array):
        self.array = array

    def __getitem__(self, where):
        return self.array[where]

    def __setitem__(self, where, value):
        self.array[where] = value

    @property
    def at(self):
        return _At(self.array)


class _At:
    def __init__(self, array):
        self.array = array

    def __getitem__(self, where):
        return Ref(self.array[where.array if isinstance(where, Ref) else where])


def loop(low, high, step=1):
    def run(body):
        for index in range(low, high, step):
            body(index)

    return run


@pytest.fixture
def by_hand(monkeypatch):
    """Run the kernel's body in NumPy, as the subcores would."""

    def copy(source, target):
        target.array[...] = source.array

    where = {}
    monkeypatch.setattr(
        sparsecore,
        "pl",
        types.SimpleNamespace(loop=loop, ds=lambda start, n: slice(start, start + n)),
    )
    monkeypatch.setattr(sparsecore, "pltpu", types.SimpleNamespace(sync_copy=copy))
    monkeypatch.setattr(
        sparsecore,
        "plsc",
        types.SimpleNamespace(load_gather=lambda ref, index: ref[tuple(index)]),
    )
    monkeypatch.setattr(
        sparsecore,
        "lax",
        types.SimpleNamespace(
            axis_index=where.__getitem__,
            iota=lambda dtype, n: np.arange(n, dtype=np.int32),
        ),
    )

    def run(pool, frames, chunk_dim, num_cores, num_subcores, num_lanes):
        block = sparsecore._BLOCK
        num_blocks = frames.size // (block * num_cores * num_subcores)
        out = np.full(frames.size * chunk_dim, np.nan, pool.dtype)
        lines = frames * chunk_dim // 128
        for core in range(num_cores):
            for subcore in range(num_subcores):
                where.update(core=core, subcore=subcore)
                sparsecore._gather_blocks(
                    *map(Ref, (frames, lines, pool, out)),
                    Ref(np.zeros(block, np.int32)),
                    Ref(np.zeros(block, np.int32)),
                    Ref(np.zeros((block, 128), pool.dtype)),
                    Ref(np.zeros(block * chunk_dim, pool.dtype)),
                    num_blocks=num_blocks,
                    num_cores=num_cores,
                    chunk_dim=chunk_dim,
                    num_lanes=num_lanes,
                )
        return out.reshape(-1, chunk_dim)

    return run


@pytest.mark.parametrize("chunk_dim", [1, 4, 16, 128])
def test_subcores_pick_the_chunks_of_their_blocks(chunk_dim, by_hand):
    rng = np.random.default_rng(chunk_dim)
    pool = rng.normal(size=(16, 128)).astype(np.float32)
    pool.reshape(-1)[:chunk_dim] = 0
    frames = rng.integers(0, 2048 // chunk_dim, 128 * 2 * 3 * 2).astype(np.int32)
    frames[::5] = 0
    read = by_hand(pool, frames, chunk_dim, num_cores=2, num_subcores=3, num_lanes=8)
    expected = pk.gather_chunks(jnp.asarray(pool), jnp.asarray(frames), chunk_dim)
    np.testing.assert_array_equal(read, expected)


def trace(chip, pool, frames, chunk_dim):
    def gather(pool, frames):
        return pk.gather_chunks(pool, frames, chunk_dim, implementation="sparsecore")

    with use_abstract_mesh(AbstractMesh((1,), ("device",), abstract_device=chip)):
        return jax.jit(gather).trace(pool, frames).lower(lowering_platforms=("tpu",))


@pytest.mark.parametrize("shape", [(300,), (2, 3, 5), (5000,)])
def test_it_lowers_for_its_chips(shape):
    lowered = trace(V6E, jnp.zeros((4, 128)), jnp.zeros(shape, jnp.int32), 4)
    assert "gather_chunks" in lowered.as_text()
    assert lowered.out_info.shape == (*shape, 4)


def test_nothing_is_read_for_no_frames():
    read = trace(V6E, jnp.zeros((4, 128)), jnp.zeros((0, 3), jnp.int32), 4)
    assert read.out_info.shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("chip", "pool", "words"),
    [
        (V5E, jnp.zeros((4, 128)), "a chip with SparseCores"),
        (V6E, jnp.zeros(512), "'sparsecore' needs a pool of lines of 128"),
        (V6E, jnp.zeros((4, 128), jnp.bfloat16), "32-bit values.*bfloat16"),
    ],
)
def test_what_it_cannot_do_is_refused(chip, pool, words):
    with pytest.raises(NotImplementedError, match=words):
        trace(chip, pool, jnp.zeros(3, jnp.int32), 4)


def test_an_update_is_not_there():
    with pytest.raises(NotImplementedError, match="'sparsecore' is not available"):
        pk.update_chunks(
            (jnp.zeros((4, 128)),),
            lax.iota(jnp.int32, 3),
            (),
            lambda windows, _: (windows, jnp.ones((3, 1), bool)),
            (4,),
            implementation="sparsecore",
        )
