"""Dense tables become a store: what is kept, where it lies and how it trains on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fiited_jax as fj
from fiited_jax import dense_tables
from fiited_jax.page_table import buckets_of
from fiited_jax.utility import decode, encode
from helpers import assert_same_state, jitted, make_config

D, C, K = 8, 2, 4
SIZES = {0: 40, 1: 1, 3: 90}  # rows per table; table 2 is left out
BOTH = pytest.mark.parametrize("ranking", ["lengths", "chunks"])
SGD = fj.sparse(optax.sgd(1.0))


def make_tables(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        number: (rng.normal(size=(size, D)) * rng.pareto(1, (size, 1))).astype(dtype)
        for number, size in SIZES.items()
    }


def make_ids(seed=0):
    """64-bit ids, some of one high word and some of one low word."""
    rng = np.random.default_rng(seed)
    return {
        number: rng.permutation(size) * ((1 << 32) + 3) + number
        for number, size in SIZES.items()
    }


def warm(tables, optimizer=None, *, seed=0, ids=None, utilities=None, **fields):
    config = make_config(**{"num_entries": 1024, "num_frames": 900, **fields})
    store, state, info = fj.from_dense(
        tables,
        config,
        optimizer or fj.rowwise_adagrad(0.1),
        key=jax.random.key(seed),
        ids=ids,
        utilities=utilities,
    )
    store.check_invariants(state)
    assert int(state.step) == int(state.decayed_at) == 0
    return store, state, info


def look_up(store, state, number, ids):
    keys = fj.keys_from_int64(np.asarray(ids, np.int64))
    return np.asarray(store.lookup(state, keys, tables=number))


def flat(tables, ids=None):
    """All rows, `(table, id, vector)`, in the order of tables and rows."""
    return [
        (number, int(row if ids is None else ids[number][row]), vector)
        for number, table in sorted(tables.items())
        for row, vector in enumerate(table)
    ]


def norms_of(vectors, ranking):
    parts = vectors.reshape(len(vectors), 1 if ranking == "lengths" else K, -1)
    return np.sqrt(np.sum(np.square(parts, dtype=np.float64), -1)).astype(np.float32)


def sort_out(utility, config, entries):
    """The chunks to keep of rows with an entry, by a plain sort: `bool[R, K]`."""
    codes = encode(jnp.asarray(utility), jnp.uint32(1 << 31))
    priority = np.asarray(decode(codes)) * np.float32(config.priority_weights)
    priority = np.broadcast_to(priority, (len(utility), K))
    _, chunk = np.indices(priority.shape)
    entry = np.broadcast_to(entries[:, None], priority.shape)
    order = np.lexsort((chunk.ravel(), entry.ravel(), -priority.ravel()))
    order = order[entry.ravel()[order] >= 0][: config.target_frames]
    chosen = np.zeros(priority.size, bool)
    chosen[order] = True
    return chosen.reshape(priority.shape)


def pages_of(rows, config, utility):
    """The rows that get an entry: the first W of each bucket, by a plain sort."""
    ids = np.array([key for _, key, _ in rows], np.int64)
    numbers = np.array([number for number, _, _ in rows], np.int32)
    buckets = np.asarray(
        buckets_of(fj.keys_from_int64(ids), numbers, config.num_buckets)
    )
    placed = []
    for bucket in range(config.num_buckets):
        inside = np.flatnonzero(buckets == bucket).tolist()
        inside.sort(key=lambda row: (-utility[row].max(), row))
        placed += inside[: config.num_ways]
    return np.sort(np.array(placed))


@pytest.mark.parametrize(
    "ranking, dtype",
    [("lengths", "float32"), ("chunks", "bfloat16"), ("lengths", "float16")],
)
def test_with_room_for_all_the_tables_are_held_exactly(ranking, dtype):
    tables, ids = make_tables(dtype=jnp.dtype(dtype)), make_ids()
    tables[0][0] = 0.0  # is worth nothing and stays, there is room
    tables[0][1] = [-0.0, 1e-40, 6e-8, 3e4, 0, 0, 0, -1]
    store, state, info = warm(tables, ids=ids, ranking=ranking)
    for number, table in tables.items():
        got = look_up(store, state, number, ids[number])
        wanted = np.asarray(table).astype(np.float32)
        np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))
    assert info == (131, 0, 0, 131 * K, 0, 1.0)
    assert not look_up(store, state, 2, ids[3]).any()
    assert not look_up(store, state, 3, ids[3] + 7).any()


@pytest.mark.parametrize(
    "ranking, num_entries, given",
    [
        ("lengths", 1024, None),
        ("lengths", 64, None),
        ("lengths", 64, "rows"),
        ("chunks", 64, None),
        ("chunks", 64, "rows"),
        ("chunks", 1024, "chunks"),
    ],
)
def test_the_best_are_kept_as_a_plain_sort_tells(ranking, num_entries, given):
    tables, ids = make_tables(1), make_ids(1)
    rows = flat(tables, ids)
    vectors = np.stack([vector for _, _, vector in rows])
    utility, utilities = norms_of(vectors, ranking), None
    if given:
        rng = np.random.default_rng(2)
        shape = (len(rows), K) if given == "chunks" else (len(rows),)
        counts = rng.integers(0, 20, shape)  # many ties, and zeros
        utility = np.broadcast_to(counts.reshape(len(rows), -1), utility.shape).astype(
            np.float32
        )
        cuts = np.cumsum([SIZES[number] for number in sorted(SIZES)])[:-1]
        parts = np.split(counts, cuts)
        utilities = dict(zip(sorted(SIZES), parts, strict=True))
    fields = {"num_entries": num_entries, "num_frames": 101, "hysteresis": 0.0}
    store, state, info = warm(
        tables, ids=ids, utilities=utilities, ranking=ranking, **fields
    )
    config = store.config
    placed = pages_of(rows, config, utility)
    keys = fj.keys_from_int64(np.array([key for _, key, _ in rows], np.int64))
    numbers = np.array([number for number, _, _ in rows], np.int32)
    entries = np.asarray(store.find(state, keys, tables=numbers).entries)
    np.testing.assert_array_equal(np.flatnonzero(entries >= 0), placed)
    chosen = sort_out(utility, config, entries)
    got = [look_up(store, state, number, ids[number]) for number in sorted(SIZES)]
    wanted = np.where(np.repeat(chosen, C, axis=1), vectors, 0)
    np.testing.assert_array_equal(np.concatenate(got), wanted)

    empty = int(np.sum(~chosen[placed].any(axis=1)))
    kept = int(chosen.sum())
    assert kept == config.target_frames == 98
    assert len(placed) < len(rows) or num_entries == 1024
    assert info[:5] == (
        len(placed),
        len(rows) - len(placed),
        empty,
        kept,
        len(rows) * K - kept,
    )
    share = np.sum(np.square(wanted, dtype=float)) / np.sum(
        np.square(vectors, dtype=float)
    )
    np.testing.assert_allclose(info.kept_square, share, rtol=1e-12)

    # Nothing is learned, so nothing moves, though utilities have 16 bits.
    pruned, prune_info = store.prune_step(state)
    assert int(prune_info.granted) == int(prune_info.freed) == 0
    assert_same_state(pruned, state)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, 8.0])
def test_codes_of_ties_and_close_calls_keep_what_is_kept(alpha):
    """Utilities less than a code apart."""
    rng = np.random.default_rng(int(alpha * 4))
    utility = 1 + rng.integers(0, 64, 600) * 2.0**-12
    tables = [np.ones((600, D), np.float32)]
    fields = {"hysteresis": 0.0, "num_frames": 701, "length_alpha": alpha}
    store, state, _ = warm(tables, utilities=[utility], **fields)
    pruned, info = jitted(store).prune(state)
    assert int(info.granted) == int(info.freed) == 0
    got = np.asarray(decode(pruned.pages.utility))
    held = store.find(pruned, np.arange(600, dtype=np.int32)).entries
    has_entry = np.asarray(held) >= 0
    np.testing.assert_allclose(
        got[np.asarray(held)[has_entry]], utility[has_entry], rtol=2.0**-8
    )


@pytest.mark.slow
@BOTH
def test_training_goes_on_as_if_the_store_had_learned_the_values(ranking):
    """Learned by one step of SGD from zeros, the values are exact too."""
    tables, ids = make_tables(2), make_ids(2)
    fields = {"ranking": ranking, "initial_chunks": K, "initial_scale": 0.0}
    store, state, _ = warm(tables, SGD, ids=ids, hysteresis=0.0, **fields)
    run, rows = jitted(store), flat(tables, ids)
    vectors = np.stack([vector for _, _, vector in rows])
    keys = fj.keys_from_int64(np.array([key for _, key, _ in rows], np.int64))
    numbers = np.array([number for number, _, _ in rows], np.int32)

    learned, handle, info = run.admit(
        store.init(jax.random.key(0)), keys, tables=numbers
    )
    assert int(info.admitted) == len(rows)
    learned, _ = run.apply(learned, handle, jnp.asarray(-vectors))
    pages = dataclasses.replace(learned.pages, utility=jnp.copy(state.pages.utility))
    learned = dataclasses.replace(learned, step=jnp.int32(0), pages=pages)
    assert_same_state(state, learned)

    rng = np.random.default_rng(3)
    for step in range(6):
        batch = rng.integers(0, 200, 32).astype(np.int32)  # some are new
        grads = jnp.asarray(rng.normal(size=(32, D)).astype(np.float32))
        state, handle, _ = run.admit(state, batch, tables=0)
        learned, other, _ = run.admit(learned, batch, tables=0)
        np.testing.assert_array_equal(
            store.gather(state, handle), store.gather(learned, other)
        )
        state, _ = run.apply(state, handle, grads)
        learned, _ = run.apply(learned, other, grads)
        if step % 3 == 2:
            state, _ = run.prune(state)
            learned, _ = run.prune(learned)
    assert_same_state(state, learned)
    store.check_invariants(state)


def test_slots_are_those_of_fresh_frames():
    """The state of this transformation is where its frame began."""
    anchored = optax.GradientTransformation(
        lambda value: (value, jnp.float32(3.0)),
        lambda grad, state, value=None: (grad, state),
    )
    _, state, info = warm(make_tables(4), fj.sparse(anchored), num_frames=101)
    anchor, three = state.pool.slots
    assert int(state.arena.next_frame) == 1 + info.kept_chunks
    np.testing.assert_array_equal(anchor, state.pool.values)
    np.testing.assert_array_equal(three, np.full(128, 3.0))
    adam = fj.sparse(optax.adam(0.1))
    _, state, _ = warm(make_tables(4), adam, num_frames=101)
    for slot in jax.tree.leaves(state.pool.slots):
        assert not np.asarray(slot).any()


@BOTH
def test_the_same_in_any_form_and_in_any_blocks(ranking, monkeypatch):
    tables, fields = make_tables(5), {"ranking": ranking, "num_frames": 301}
    tables[2] = np.empty((0, D), np.float32)
    ids = {number: np.arange(len(table)) for number, table in tables.items()}
    _, state, info = warm(tables, **fields)
    keys = [fj.keys_from_int64(ids[number]) for number in range(4)]
    listed = [tables[number] for number in range(4)]
    forms = [
        (listed, None),
        (dict(reversed(tables.items())), dict.fromkeys(range(4))),
        ([jnp.asarray(table) for table in listed], keys),
        (
            [np.asfortranarray(table) for table in listed],
            tuple(ids[i] for i in range(4)),
        ),
        (
            tables,
            {0: jnp.arange(40), 1: np.uint8([0]), 3: np.arange(90, dtype=np.uint64)},
        ),
    ]
    for form, form_ids in forms:
        _, other, other_info = warm(form, ids=form_ids, **fields)
        assert_same_state(state, other)
        assert info == other_info
    monkeypatch.setattr(dense_tables, "_BLOCK_VALUES", 7 * D)
    _, other, _ = warm(tables, **fields)
    assert_same_state(state, other)


def test_no_rows_are_a_store_that_tracks_nothing():
    for tables in ([], {}, [np.empty((0, D), np.float32)]):
        store, state, info = warm(tables, num_frames=101)
        assert_same_state(state, store.init(jax.random.key(0)))
        assert info == (0, 0, 0, 0, 0, 1.0)


def test_narrow_ids_and_huge_utilities():
    top = np.uint32([0xFFFFFFFF, 0, 0x80000000])
    store, state, _ = warm(
        [np.eye(3, D, dtype=np.float32)],
        ids=[top],
        utilities=[np.array([1e300, 0, 1e-300])],
        id_bits=32,
    )
    np.testing.assert_array_equal(store.lookup(state, top), np.eye(3, D))


TABLE = np.ones((3, D), np.float32)
TALL = np.ones((3, D + 1), np.float32)
NAN = np.where(np.arange(3)[:, None] == 2, np.float32(np.nan), TABLE)
REFUSED = {
    "array": (TypeError, "tables must be a sequence", TABLE, {}),
    "container": (TypeError, "tables must be .* got int", 3, {}),
    "number": (TypeError, "table numbers as keys, got 'a'", {"a": TABLE}, {}),
    "many": (ValueError, r"\[0, 4\).* got 4", [TABLE] * 5, {}),
    "negative_table": (ValueError, r"\[0, 4\).* got -1", {-1: TABLE}, {}),
    "list": (TypeError, r"tables\[0\] must be an array, got list", [[[1.0]]], {}),
    "float64": (TypeError, "astype", [TABLE, TABLE.astype(np.float64)], {}),
    "integers": (TypeError, r"tables\[0\] .* got int32", [TABLE.astype(np.int32)], {}),
    "width": (ValueError, r"\[num_rows, 8\].* got \(3, 9\)", [TALL], {}),
    "flat": (ValueError, r"got \(8,\)", [TABLE[0]], {}),
    "nan": (ValueError, r"tables\[1\] must be finite, row 2 has nan", [TABLE, NAN], {}),
    "inf": (ValueError, "row 0 has -inf", [TABLE * -np.float32(np.inf)], {}),
    "ids_keys": (TypeError, "ids must be a sequence", [TABLE], {"ids": fj.PADDING_KEY}),
    "ids_float": (TypeError, "must be integers or", [TABLE], {"ids": [TABLE[:, 0]]}),
    "ids_list": (TypeError, "must be an array", [TABLE], {"ids": [[1, 2, 3]]}),
    "ids_missing": (ValueError, "got 1 for", [TABLE] * 2, {"ids": [np.arange(3)]}),
    "ids_dict": (ValueError, "got table 2", {0: TABLE}, {"ids": {2: np.arange(3)}}),
    "ids_short": (ValueError, r"\(3,\).* got \(2,\)", [TABLE], {"ids": [np.arange(2)]}),
    "ids_scalar": (ValueError, r"got \(\)", [TABLE], {"ids": [np.array(-1)]}),
    "negative": (ValueError, "row 1 is -5", [TABLE], {"ids": [np.array([0, -5, 1])]}),
    "twice": (
        ValueError,
        r"ids\[1\] must be distinct, rows 0 and 2 are both 7",
        {1: TABLE},
        {"ids": {1: np.array([7, 1, 7])}},
    ),
    "wide": (
        ValueError,
        "row 1 is 4294967296",
        [TABLE],
        {"ids": [np.array([1, 1 << 32, 2])], "id_bits": 32},
    ),
    "padding": (
        ValueError,
        "row 2 is PADDING_KEY",
        [TABLE],
        {"ids": [fj.keys_from_int64(np.array([-2, -3, -1]))]},
    ),
    "words": (
        TypeError,
        r"ids\[0\].high must be uint32, got int64",
        [TABLE],
        {"ids": [fj.Keys(np.zeros(3, np.uint32), np.arange(3))]},
    ),
    "words_shape": (
        ValueError,
        "one shape",
        [TABLE],
        {"ids": [fj.Keys(np.zeros(3, np.uint32), np.zeros(2, np.uint32))]},
    ),
    "utility_list": (TypeError, "must be an array", [TABLE], {"utilities": [[1.0]]}),
    "utility_bool": (TypeError, "got bool", [TABLE], {"utilities": [TABLE[:, 0] > 0]}),
    "utility_shape": (
        ValueError,
        r"shape \(3,\) with ranking='lengths', got \(3, 4\)",
        [TABLE],
        {"utilities": [TABLE[:, :K]]},
    ),
    "utility_chunks": (
        ValueError,
        r"shape \(3,\) or \(3, 4\) .* got \(3, 8\)",
        [TABLE],
        {"utilities": [TABLE], "ranking": "chunks"},
    ),
    "utility_negative": (
        ValueError,
        r"utilities\[0\] must be finite and at least 0, row 0 has \[-1",
        [TABLE],
        {"utilities": [-TABLE[:, 0]]},
    ),
    "utility_nan": (ValueError, "row 2 has", [TABLE], {"utilities": [NAN[:, 0]]}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name):
    error, words, tables, arguments = REFUSED[name]
    with pytest.raises(error, match=words):
        warm(tables, **arguments)


def test_another_optimizer_than_the_budgets_is_refused():
    config = fj.EmbeddingConfig.from_budget(
        "64KiB", embedding_dim=D, chunk_dim=C, optimizer=SGD
    )
    with pytest.raises(ValueError, match="from_budget counted"):
        fj.from_dense([], config, fj.rowwise_adagrad(0.1), key=jax.random.key(0))
