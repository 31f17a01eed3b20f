import dataclasses
import itertools

import jax
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fiited_jax as fj
from fiited_jax.sizes import parse_bytes
from helpers import make_config

OPTIMIZERS = {
    "sgd": fj.sparse(optax.sgd(0.1)),
    "adagrad": fj.sparse(optax.adagrad(0.1)),
    "rowwise_adagrad": fj.rowwise_adagrad(0.1),
    "adam": fj.sparse(optax.adam(0.1)),
}


@pytest.mark.parametrize(
    ("field", "value", "error", "words"),
    [
        ("embedding_dim", 0, ValueError, "at least 1, got 0"),
        ("embedding_dim", 8.0, TypeError, "8.0"),
        ("chunk_dim", 3, ValueError, "embedding_dim=8, got 3"),
        ("chunk_dim", -2, ValueError, "-2"),
        ("num_entries", 65, ValueError, "num_ways=32, got 65"),
        ("num_entries", 1 << 30, ValueError, "2\\^31"),
        ("num_frames", 1, ValueError, "at least 2, got 1"),
        ("num_ways", 0, ValueError, "num_ways"),
        ("num_tables", True, TypeError, "num_tables"),
        ("initial_chunks", 5, ValueError, "4, got 5"),
        ("half_life", 0.0, ValueError, "half_life"),
        ("half_life", float("nan"), ValueError, "half_life"),
        ("initial_scale", float("inf"), ValueError, "initial_scale"),
        ("headroom", 1.0, ValueError, "headroom"),
        ("hysteresis", -0.1, ValueError, "hysteresis"),
        ("fallback", "none", ValueError, "'shared' or 'coarse', got 'none'"),
        ("utility_scale", "p99", ValueError, "'none' or 'p95', got 'p99'"),
        ("scorer", "fiited", TypeError, "scorer"),
        ("half_life", "long", TypeError, "'long'"),
        ("headroom", None, TypeError, "None"),
    ],
)
def test_bad_fields_are_named(field, value, error, words):
    with pytest.raises(error, match=words):
        make_config(**{field: value})


def test_config_is_hashable_and_equal_by_value():
    assert make_config() == make_config()
    assert hash(make_config()) == hash(make_config())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("64MiB", 64 << 20), ("1.5GB", 1500000000), (" 2 kib ", 2048), (7, 7), ("9", 9)],
)
def test_sizes_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MiB", "-5", "0", "1e6", "5 apples", "3i", None])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="a size must be"):
        parse_bytes(text)


def live_bytes(config, optimizer):
    state = fj.EmbeddingStore(config, optimizer).init(jax.random.key(0))
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    budget=st.integers(1 << 20, 5 << 20),
    widths=st.sampled_from(
        [(16, 4), (64, 1), (64, 16), (64, 64), (24, 6), (128, 128), (512, 128), (3, 1)]
    ),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    share=st.sampled_from([None, 0.05, 1.0]),
)
def test_from_budget_fills_but_never_exceeds(budget, widths, optimizer, share):
    embedding_dim, chunk_dim = widths
    if share is not None:
        share *= embedding_dim // chunk_dim
    config = fj.EmbeddingConfig.from_budget(
        budget,
        embedding_dim=embedding_dim,
        chunk_dim=chunk_dim,
        optimizer=OPTIMIZERS[optimizer],
        frames_per_entry=share,
    )
    live = live_bytes(config, OPTIMIZERS[optimizer])
    assert 0.95 * budget <= live <= budget
    assert budget - live < config.num_ways * config.entry_bytes


@pytest.mark.parametrize(
    "fields",
    [
        {"frames_per_entry": 0.001},
        {"frames_per_entry": 2.0},
        {"embedding_dim": 256, "chunk_dim": 256, "frames_per_entry": 0.001},
        {"filter_share": 0.3},
        {"fallback": "shared", "shared_share": 0.5},
        {"fallback": "shared", "filter_share": 0.4, "value_dtype": "bfloat16"},
    ],
)
def test_smallest_budget_is_told_and_works(fields):
    arguments = {
        "embedding_dim": 16,
        "chunk_dim": 4,
        "optimizer": OPTIMIZERS["adagrad"],
        **fields,
    }
    with pytest.raises(ValueError, match="one bucket") as error:
        fj.EmbeddingConfig.from_budget(100, **arguments)
    smallest = int(str(error.value).split(" bytes")[0].split()[-1])
    config = fj.EmbeddingConfig.from_budget(smallest, **arguments)
    assert live_bytes(config, OPTIMIZERS["adagrad"]) <= smallest
    with pytest.raises(ValueError, match="one bucket"):
        fj.EmbeddingConfig.from_budget(smallest - 1, **arguments)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"chunk_dim": 5}, "got 5"),
        ({"budget": "none"}, "'none'"),
        ({"frames_per_entry": 9.0}, "got 9.0"),
        ({"filter_share": 1.0}, "filter_share"),
        ({"fallback": "shared", "filter_share": 0.9}, "must leave a part"),
        ({"num_ways": -1}, "num_ways"),
        ({"half_life": -1.0}, "half_life"),
        ({"half_life": 1e-40}, "half_life"),
        ({"chunk_dim": -4}, "chunk_dim"),
        ({"num_entries": 8}, "follow from budget"),
    ],
)
def test_from_budget_names_what_is_wrong(fields, words):
    arguments = {"budget": "1MiB", "embedding_dim": 16, "chunk_dim": 4, **fields}
    with pytest.raises(ValueError, match=words):
        fj.EmbeddingConfig.from_budget(**arguments, optimizer=OPTIMIZERS["sgd"])


@pytest.mark.parametrize("id_bits", [32, 64])
@pytest.mark.parametrize("chunk_dim", [1, 4, 16])
def test_wide_starts_come_when_they_bring_frames(chunk_dim, id_bits):
    optimizer = fj.rowwise_adagrad(0.1)

    def sizes(num_bytes):
        config = fj.EmbeddingConfig.from_budget(
            num_bytes,
            embedding_dim=16,
            chunk_dim=chunk_dim,
            optimizer=optimizer,
            id_bits=id_bits,
            frames_per_entry=1.0,
        )
        taken = fj.predict_memory(config, optimizer).all_in_bytes
        assert 0.95 * num_bytes <= taken <= num_bytes
        return config.num_entries, config.num_frames, config.start_dtype.itemsize

    each = 10 + (id_bits == 64) * 4 + 4 * chunk_dim + 4
    budgets = range(int(0.9 * each) << 16, int(1.5 * each) << 16, each << 12)
    found = [sizes(num_bytes) for num_bytes in budgets]
    assert {(frames > 1 << 16, width) for _, frames, width in found} == {
        *((False, 2), (True, 4))
    }
    for (entries, frames, _), (more, more_frames, _) in itertools.pairwise(found):
        assert more_frames >= frames
        assert more >= 0.8 * entries  # two bytes of ten
    assert all(0.8 < frames / entries < 1.01 for entries, frames, _ in found)


def test_as_many_entries_as_one_device_can_rank():
    fields = {"embedding_dim": 64, "chunk_dim": 1, "optimizer": fj.rowwise_adagrad(0.1)}
    config = fj.EmbeddingConfig.from_budget("8GiB", **fields)
    assert config.num_entries == ((1 << 31) - 1) // 64 // 32 * 32
    assert fj.predict_memory(config, fields["optimizer"]).all_in_bytes > 0.95 * (
        8 << 30
    )
    with pytest.raises(ValueError, match="budget must be smaller with chunk_dim=1"):
        fj.EmbeddingConfig.from_budget("64GiB", **fields)


def test_store_refuses_an_optimizer_that_was_not_counted():
    config = fj.EmbeddingConfig.from_budget(
        "1MiB", embedding_dim=16, chunk_dim=4, optimizer=OPTIMIZERS["rowwise_adagrad"]
    )
    fj.EmbeddingStore(config, OPTIMIZERS["rowwise_adagrad"])
    for name in ("sgd", "adagrad", "adam"):
        with pytest.raises(ValueError, match="from_budget counted"):
            fj.EmbeddingStore(config, OPTIMIZERS[name])
    free = dataclasses.replace(config, budgeted_slots=None)
    fj.EmbeddingStore(free, OPTIMIZERS["adam"])


def test_store_refuses_things_that_are_no_optimizer():
    with pytest.raises(TypeError, match=r"fj\.sparse"):
        fj.EmbeddingConfig.from_budget(
            "1MiB", embedding_dim=8, chunk_dim=2, optimizer=optax.sgd(0.1)
        )
    with pytest.raises(TypeError, match=r"fj\.sparse"):
        fj.EmbeddingStore(make_config(), optax.adagrad(0.1))
    with pytest.raises(TypeError, match="EmbeddingConfig"):
        fj.EmbeddingStore({}, OPTIMIZERS["sgd"])
    with pytest.raises(TypeError, match="int"):
        fj.sparse(3)
    with pytest.raises(ValueError, match="elementwise"):
        fj.EmbeddingStore(
            make_config(),
            fj.sparse(
                optax.GradientTransformation(
                    lambda params: params[:1], lambda g, s, p=None: (g, s)
                )
            ),
        )
