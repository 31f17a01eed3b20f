"""What every embedding method promises, tried on all of them."""

import dataclasses
import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fiited_jax as fj
from fiited_jax.data import Vocabulary
from fiited_jax.memory import dense_bytes
from fiited_jax.methods import METHODS, STORE_OPTIONS, Request, options_read
from fiited_jax.methods.id_words import id_words
from fiited_jax.training.loop import digest

WIDTH = 8
SIZES = (400, 80, 12)
OPTIMIZER = fj.sparse(optax.adagrad(0.2, initial_accumulator_value=1e-6, eps=1e-10))
WITH_BUDGET = sorted(METHODS.keys() - {"full"})
HASHING = ("cafe", "hash")  # unknown ids read shared rows
STORES = ("adaembed", "fiited", "fiited_paper", "itep")
# It trains more than the dense table; its budget is a share of the values alone.
WITHIN_BYTES = sorted({*WITH_BUDGET} - {"pep"})
# Whole widths leave bytes over; a store takes no more than all ids need.
NEAR = {"small_dim": 0.5, "mixed_dim": 0.9, **dict.fromkeys(STORES, 0.5)}
BATCH = 128


def vocabulary(sizes=SIZES):
    return Vocabulary(np.arange(size) * 7 + 3 for size in sizes)


def build(name, budget, *, known=None, optimizer=OPTIMIZER, **options):
    known = vocabulary() if known is None else known
    fields = {
        "embedding_dim": WIDTH,
        "chunk_dim": 1,
        "num_tables": known.num_tables,
        "budget": budget,
        "optimizer": optimizer,
        "vocabulary": known,
        "scorer": fj.scorers.grad_norm(),
    }
    return METHODS[name](Request(**(fields | options)))


@functools.cache
def compressed(name):
    """A method at half the dense bytes."""
    return build(name, dense_bytes(sum(SIZES), WIDTH, OPTIMIZER) // 2)


def tables(ids):
    return jnp.arange(jax.tree.leaves(ids)[0].shape[-1], dtype=jnp.int32)


def loss_of(vectors, labels):
    return jnp.mean(jnp.square(jnp.sum(vectors, axis=(1, 2)) - labels))


@functools.partial(nnx.jit, donate_argnums=0)
def train_step(embed, ids, labels, factors):
    handle, _ = embed.admit(ids, tables=tables(ids))
    loss, grads = jax.value_and_grad(loss_of)(embed.gather(handle), labels)
    return loss, embed.apply_gradients(handle, grads * factors[:, None, None])


@nnx.jit
def look_up(embed, ids):
    return embed(ids, tables=tables(ids))


prune = nnx.jit(lambda embed: embed.prune_step(), donate_argnums=0)


class Problem(NamedTuple):
    """Labels are sums of what ids are worth; low ids come often."""

    ids: np.ndarray
    labels: np.ndarray


@functools.cache
def problem():
    rng = np.random.default_rng(0)
    ranks = [rng.zipf(1.5, BATCH * 100) % size for size in SIZES]
    labels = sum(rng.normal(size=n)[r] for n, r in zip(SIZES, ranks, strict=True))
    return Problem(np.stack(ranks, 1) * 7 + 3, labels.astype(np.float32))


def batches():
    ids, labels = problem()
    for start in range(0, len(ids), BATCH):
        yield ids[start : start + BATCH], labels[start : start + BATCH]


def fit(name, seed, num_steps=100):
    """Train; return the module and the mean loss of the last ten steps."""
    method = compressed(name)
    embed = method.make_embed(nnx.Rngs(seed))
    losses = run_steps(method, embed, num_steps)
    if method.restart is not None:
        restart(method, embed)
        losses = run_steps(method, embed, num_steps)
    return embed, float(np.mean(losses[-10:]))


def restart(method, embed):
    nnx.jit(method.restart, donate_argnums=0)(embed)


def run_steps(method, embed, num_steps):
    """Train; return the losses."""
    losses = []
    for step, (ids, labels) in zip(range(num_steps), batches(), strict=False):
        ids = method.encode(ids)
        losses.append(train_step(embed, ids, labels, np.ones(BATCH, np.float32))[0])
        if method.prunes and step % 10 == 9:
            prune(embed)
    return losses


@pytest.mark.parametrize("name", METHODS)
def test_it_reads_the_options_that_are_said(name):
    """Results are found again whatever the others are."""
    others = {
        "chunk_dim": 2,
        "scorer": fj.scorers.frequency(),
        "ranking": "chunks",
        "length_alpha": 1.0,
        "half_life": 9.0,
        "frames_per_entry": 4.0,
        "filter_share": 0.1,
        "fallback": "shared",
        "shared_share": 0.1,
        "value_dtype": "bfloat16",
        "page_table": "rows",
    }
    assert others.keys() == STORE_OPTIONS - {"prune_interval", "prune_warmup"}
    read = options_read(name)
    assert compressed(name).prunes == ("prune_interval" in read)
    assert compressed(name).prunes == ("prune_warmup" in read)
    shared = {"fallback": "shared"}
    for option, value in others.items():
        usual = shared if option == "shared_share" else {}
        plain = describe(name, **usual)
        is_same = describe(name, **usual, **{option: value}) == plain
        assert is_same != (option in read), option


@functools.cache
def describe(name, **options):
    """What tells one embedding module from another."""
    embed = build(name, 6_000, **options).make_embed(nnx.Rngs(0))
    rules = {
        key: value
        for key, value in vars(embed).items()
        if not key.startswith("_") and not isinstance(value, nnx.Variable)
    }
    assert rules
    return digest(state_of(embed)), rules


def state_of(embed):
    return embed.state.get_value()


@pytest.mark.parametrize("name", METHODS)
def test_it_fits_a_tiny_problem_the_same_way_every_time(name):
    of_zeros = float(np.mean(np.square(problem().labels[-10 * BATCH :])))
    embed, loss = fit(name, seed=0)
    assert loss < 0.3 * of_zeros
    shorter = [fit(name, seed, num_steps=12)[0] for seed in (0, 0, 1)]
    first, second, other = (digest(state_of(embed)) for embed in shorter)
    assert first == second != other
    before = digest(state_of(embed))
    assert np.all(np.isfinite(look_up(embed, compressed(name).encode(problem().ids))))
    assert digest(state_of(embed)) == before


@pytest.mark.parametrize("name", METHODS)
def test_unknown_ids_and_padding(name):
    method = compressed(name)
    embed, _ = fit(name, seed=0, num_steps=12)
    ids = np.array([[10, 10, 10], [5, -1, 6], [1 << 40, 5, -1]])
    vectors = np.asarray(look_up(embed, method.encode(ids)))
    assert np.all(np.any(vectors[0] != 0, axis=-1))
    np.testing.assert_array_equal(vectors[ids == -1], 0)
    unknown = vectors[1:][ids[1:] != -1]
    assert np.all(np.any(unknown != 0, axis=-1) == (name in HASHING))
    labels = np.ones(3, np.float32)
    train_step(embed, method.encode(ids), labels, labels)
    np.testing.assert_array_equal(
        look_up(embed, method.encode(ids))[jnp.asarray(ids == -1)], 0
    )


@pytest.mark.parametrize("name", METHODS)
def test_gradients_that_are_not_finite_are_skipped(name):
    method = compressed(name)
    embed, _ = fit(name, seed=0, num_steps=12)
    ids, labels = next(batches())
    ids = method.encode(ids)
    for bad in (np.nan, np.inf):
        before = digest(state_of(embed))
        _, info = train_step(embed, ids, labels, np.full(BATCH, bad, np.float32))
        assert int(info.updated) == 0
        assert int(info.non_finite) > 0
        if name not in STORES:  # which count steps
            assert digest(state_of(embed)) == before
        factors = np.ones(BATCH, np.float32)
        factors[-1] = bad
        _, info = train_step(embed, ids, labels, factors)
        assert int(info.updated) > 0
        assert int(info.non_finite) > 0
    for leaf in jax.tree.leaves(state_of(embed)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize(
    "ratio, optimizer",
    [(1.1, OPTIMIZER), (5.0, OPTIMIZER), (3.0, fj.rowwise_adagrad(0.1))],
    ids=["1.1", "5", "3-rowwise"],
)
@pytest.mark.parametrize("name", WITHIN_BYTES)
def test_bytes_are_near_the_budget_and_never_above(name, optimizer, ratio):
    known = vocabulary((2500, 1300, 211, 30, 1))
    budget = int(dense_bytes(known.num_pairs, WIDTH, optimizer) / ratio)
    method = build(name, budget, known=known, optimizer=optimizer)
    embed = method.make_embed(nnx.Rngs(0))
    held = embed.memory_report().all_in_bytes
    assert held == sum(leaf.nbytes for leaf in jax.tree.leaves(state_of(embed)))
    assert held <= budget
    assert held > NEAR.get(name, 0.97) * budget


@pytest.mark.parametrize(
    "ratio, optimizer",
    [(0.5, OPTIMIZER), (5.0, OPTIMIZER), (1.1, fj.rowwise_adagrad(0.1))],
    ids=["0.5", "5", "1.1-rowwise"],
)
def test_the_budget_of_pep_is_a_share_of_the_values(optimizer, ratio):
    known = vocabulary((2500, 1300, 211, 30, 1))
    dense = dense_bytes(known.num_pairs, WIDTH, optimizer)
    method = build("pep", int(dense / ratio), known=known, optimizer=optimizer)
    embed = method.make_embed(nnx.Rngs(0))
    restart(method, embed)
    report = embed.memory_report().against_dense(known.num_pairs, WIDTH, optimizer)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state_of(embed)))
    assert report.all_in_bytes == held > 1.9 * dense
    assert report.values_ratio == pytest.approx(max(ratio, 1.0), rel=1e-3)
    assert report.values_ratio >= min(ratio, 1.0)
    ids = np.arange(known.num_pairs, dtype=np.int32)
    assert np.count_nonzero(embed(ids)) * 4 == report.kept_values
    assert report.values_ratio == known.num_pairs * WIDTH * 4 / report.kept_values


def test_the_smallest_budget_of_pep_keeps_one_value():
    with pytest.raises(ValueError, match="method pep") as refused:
        build("pep", 1)
    least = int(re.findall(r"(\d+) bytes", str(refused.value))[0])
    with pytest.raises(ValueError, match="too small"):
        build("pep", least - 1)
    method = build("pep", least)
    embed = method.make_embed(nnx.Rngs(0))
    restart(method, embed)
    assert embed.memory_report().kept_values == 4
    with pytest.raises(ValueError, match="budget must be given"):
        build("pep", None)


@pytest.mark.parametrize("name", sorted({*WITHIN_BYTES} - {*STORES}))
def test_the_smallest_budget_is_told(name):
    with pytest.raises(ValueError, match=f"method {name}") as refused:
        build(name, 100)
    least = int(re.findall(r"(\d+) bytes", str(refused.value))[0])
    with pytest.raises(ValueError, match="too small"):
        build(name, least - 1)
    embed = build(name, least).make_embed(nnx.Rngs(0))
    assert embed.memory_report().all_in_bytes <= least
    with pytest.raises(ValueError, match="budget must be given"):
        build(name, None)


def test_stores_of_other_methods_have_their_rules():
    configs = {
        name: compressed(name).make_embed(nnx.Rngs(0)).store.config for name in STORES
    }
    assert [configs[name].num_chunks for name in STORES] == [1, 8, 4, 1]
    rows = configs["adaembed"]
    assert (rows.hysteresis, rows.table_floors) == (0.05, None)
    assert [configs[name].utility_scale for name in STORES] == ["p95", *["none"] * 3]
    assert rows.scorer == configs["fiited_paper"].scorer == fj.scorers.fiited()
    np.testing.assert_allclose(0.5 ** (1024 / rows.half_life), 0.8)
    rows = configs["itep"]
    np.testing.assert_allclose(rows.table_floors, np.array(SIZES) / sum(SIZES))
    np.testing.assert_allclose(0.5 ** (1001 / rows.half_life), 0.98)
    assert rows.scorer == fj.scorers.frequency()


@pytest.mark.parametrize(("name", "held"), [("itep", [24, 8]), ("adaembed", [8, 24])])
def test_rows_of_tables_compete_as_the_method_says(name, held):
    known = vocabulary((96, 32))
    embed = build(name, 3000, known=known).make_embed(nnx.Rngs(0))
    config = embed.store.config
    embed = type(embed)(
        dataclasses.replace(
            config, num_entries=512, num_frames=33, headroom=0.0, budgeted_slots=None
        ),
        OPTIMIZER,
        rngs=nnx.Rngs(0),
    )
    ids = np.stack([np.arange(96), np.arange(96) % 32], 1).astype(np.int32)

    @nnx.jit
    def step(embed, grads):
        handle, _ = embed.admit(jnp.asarray(ids), tables=jnp.arange(2))
        embed.apply_gradients(handle, grads)
        embed.prune_step()

    # Table 0 has much the larger gradients. Over the largest of its table, the second
    # best of table 1 is better: 0.5 against 0.2.
    is_best = ids < np.array([8, 16])
    grads = np.where(is_best, [9.0, 0.1], [1.8, 0.05])[..., None] * np.ones(8)
    step(embed, jnp.asarray(grads, jnp.float32))
    assert [use.frames for use in embed.memory_report().tables] == held


def entries_of(method):
    """The config of the store that a method makes."""
    return method.make_embed(nnx.Rngs(0)).store.config


def test_rows_are_taken_where_they_leave_a_frame_for_each():
    known, num_ids = vocabulary(), sum(SIZES)
    least = 28 + 5 * num_ids + 4 * (num_ids + 1)  # a frame is a value and its slot
    with_rows = build("fiited", 2 * least)
    assert entries_of(with_rows).table_sizes == SIZES
    too_few = build("fiited", least)
    assert entries_of(too_few).table_sizes is None
    for options in ({"frames_per_entry": 2.0}, {"filter_share": 0.1}):
        assert entries_of(build("fiited", 2 * least, **options)).table_sizes is None
    assert entries_of(build("fiited", least, page_table="rows")).num_entries == num_ids
    many = Vocabulary([np.arange(1 << 18)])  # more chunks than are numbered
    sizes = {"embedding_dim": 1 << 13, "num_tables": 1}
    assert entries_of(build("fiited", 10**7, known=many, **sizes)).table_sizes is None
    with pytest.raises(ValueError, match="an entry for each of 492 rows"):
        build("fiited", 2000, page_table="rows")
    ids = np.array([[3, 10, 3], [4, 3 + 7 * 79, -1]])
    # Unknown ids are behind the last row, padding stays padding.
    assert with_rows.encode(ids).tolist() == [[0, 1, 0], [400, 79, -1]]
    assert with_rows.encode(ids).dtype == np.int32
    assert known.rows(ids)[0].tolist() == [0, 401, 480]


def test_coarse_values_are_taken_for_rare_ids():
    known = vocabulary((4000, 800, 120))
    rare = {"fallback": "auto", "lookups_per_id": 10.0, "coarse_step": 0.25}

    def made(bytes_per_id, **others):
        budget = bytes_per_id * known.num_pairs
        options = {"embedding_dim": 16} | rare | others
        return entries_of(build("fiited", budget, known=known, **options))

    config = made(12)
    assert (config.table_sizes, config.fallback) == ((4000, 800, 120), "coarse")
    assert (config.coarse_dim, config.coarse_step) == (6, 0.25)
    assert config.initial_chunks == 0
    assert made(100).coarse_dim == 8  # half of a vector
    assert made(15, chunk_dim=4).coarse_dim == 4
    few = made(7)  # less than 4 for each
    assert (few.table_sizes, few.fallback) == (None, "zero")
    for others in (
        {"lookups_per_id": 50.0},
        {"lookups_per_id": None},
        {"fallback": "zero"},
        {"optimizer": fj.rowwise_adagrad(0.1)},
        {"page_table": "hashed"},
    ):
        config = made(12, **others)
        assert (config.fallback, config.coarse_dim) == ("zero", 0), others
    config = made(12, fallback="coarse", page_table="hashed")
    assert (config.table_sizes, config.coarse_dim) == (None, 6)


@pytest.mark.parametrize("page_table", ["hashed", "rows"])
def test_coarse_values_fit_a_tiny_problem(page_table):
    of_zeros = float(np.mean(np.square(problem().labels[-10 * BATCH :])))
    options = {"fallback": "coarse", "coarse_step": 0.1, "page_table": page_table}
    method = build("fiited", 20 * sum(SIZES), **options)
    losses = run_steps(method, method.make_embed(nnx.Rngs(0)), 100)
    assert np.mean(losses[-10:]) < 0.3 * of_zeros


def test_the_missing_category_alone_costs_no_word():
    missing = 1 << 32
    short = Vocabulary([np.array([5, 9]), np.array([7])])
    marked = Vocabulary([np.array([5, 9, missing]), np.array([7])])
    wide = Vocabulary([np.array([5, 9, missing, missing + 1]), np.array([7])])
    bits = [id_words(known).bits for known in (short, marked, wide)]
    assert bits == [32, 32, 64]
    made = [build("fiited_paper", 3000, known=known) for known in (short, marked, wide)]
    of_short, of_marked, of_wide = (entries_of(method).entry_bytes for method in made)
    assert of_short == of_marked == of_wide - 4
    made = [build("cafe", 3000, known=known) for known in (short, marked, wide)]
    words = [
        state_of(method.make_embed(nnx.Rngs(0))).sketch.key_high for method in made
    ]
    assert [word is None for word in words] == [True, True, False]


def test_the_missing_category_changes_places_with_an_id_that_is_not_there():
    top = (1 << 32) - 1
    known = Vocabulary([np.array([5, top, 1 << 32]), np.array([top - 1])])
    words = id_words(known)
    ids = np.array([[1 << 32, top], [top - 2, 5], [-1, 1 << 33]])
    keys = words.encode(ids)
    assert keys.low.tolist() == [[top - 2, top], [0, 5], [top, 0]]
    assert keys.high.tolist() == [[0, 0], [1, 0], [top, 2]]
