"""The generated stream: reproducible, drifting, calibrated and learnable."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss, roc_auc_score

import stream_checks
from fiited_jax.data import Batch, Change, DemoStream, demo, planted
from stream_checks import assert_same

BLOCK = demo._BLOCK


def joined(stream: DemoStream, split, batch_size: int = 4096) -> Batch:
    return stream_checks.joined(stream, split, batch_size)


@pytest.fixture(scope="module")
def default() -> DemoStream:
    return DemoStream()


@pytest.fixture(scope="module")
def train(default) -> Batch:
    return joined(default, "train")


@pytest.fixture(scope="module")
def test(default) -> Batch:
    return joined(default, "test")


def test_shapes_and_ranges(default, train, test):
    assert (default.name, default.num_dense, default.num_tables) == ("demo", 13, 26)
    for batch, count in ((train, 200_000), (test, 40_000)):
        assert batch.labels.shape == (count,)
        assert batch.dense.shape == (count, 13)
        assert batch.ids.shape == (count, 26)
        assert batch.labels.dtype == batch.dense.dtype == np.float32
        assert batch.ids.dtype == np.int64
        assert set(np.unique(batch.labels)) == {0, 1}
        assert np.all(np.isfinite(batch.dense))
        assert batch.dense.min() >= 0
        assert batch.ids.min() >= 0
        assert batch.ids.max() < 1 << 31


def test_same_seed_same_bits_other_seed_other_stream():
    first, second, other = (DemoStream(1000, 100, seed) for seed in (3, 3, 4))
    assert_same(joined(first, "train"), joined(second, "train"))
    assert_same(joined(first, "train"), joined(first, "train"))  # a second epoch
    for one, another in zip(
        joined(first, "train"), joined(other, "train"), strict=True
    ):
        assert np.any(one != another)


@pytest.mark.parametrize("batch_size", [1000, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_batch_size_does_not_matter(batch_size):
    stream = DemoStream(2 * BLOCK + 50, 60)
    assert_same(joined(stream, "train", batch_size), joined(stream, "train", 777))


@pytest.mark.parametrize("num_train", [1, 500, BLOCK - 1, BLOCK, BLOCK + 1])
def test_the_split_only_cuts_the_stream(num_train):
    total = BLOCK + 300
    whole = joined(DemoStream(total, 1), "train")
    stream = DemoStream(num_train, total - num_train)
    parts = joined(stream, "train"), joined(stream, "test")
    assert len(parts[0].labels) == num_train
    assert_same(Batch(*map(np.concatenate, zip(*parts, strict=True))), whole)
    for split, part in zip(("train", "test"), parts, strict=True):
        assert len(stream.probabilities(split)) == len(part.labels)


def test_a_late_block_is_made_alone(monkeypatch):
    made = []
    make = DemoStream._block
    monkeypatch.setattr(
        DemoStream,
        "_block",
        lambda self, block: made.append(block) or make(self, block),
    )
    stream = DemoStream(10**9, 10)
    assert len(joined(stream, "test").labels) == 10
    assert made == [10**9 // BLOCK]


def test_memory_does_not_grow_with_the_stream():
    stream = DemoStream(10 * BLOCK, 1)
    tracemalloc.start()
    try:
        count = sum(len(batch.labels) for batch in stream.batches("train", 512))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 10 * BLOCK
    assert peak < 6 * BLOCK * (26 * 8 + 13 * 4 + 4)


def test_zipf_ranks_follow_the_power_law():
    uniform = (np.arange(1_000_000) + 0.5) / 1_000_000
    for ranks, exponent in ((3, 1.05), (1000, 1.1), (1_000_000, 1.2)):
        drawn = planted._zipf_ranks(uniform, ranks, exponent)
        assert drawn.min() == 0
        assert drawn.max() < ranks
        edges = np.arange(1, ranks + 2) ** (1 - exponent)
        share = (edges[:-1] - edges[1:]) / (edges[0] - edges[-1])
        found = np.bincount(drawn, minlength=ranks)[:100] / len(drawn)
        np.testing.assert_allclose(found, share[:100], atol=2e-6)
    assert planted._zipf_ranks(np.array([0, 1 - 2**-53]), 3, 1.1).tolist() == [0, 2]


def test_a_rank_changes_hands_once_per_lifetime_and_never_back():
    times = np.arange(100_000)
    for rank in (0, 1, 77):
        ids = planted._holders(np.full_like(times, rank), times, 100, 10_000)
        changes = np.flatnonzero(np.diff(ids))
        assert len(changes) in (9, 10)
        assert np.all(np.diff(changes) == 10_000)
        assert len(np.unique(ids)) == len(changes) + 1
        assert np.unique(planted._holders(ids * 0 + rank, times, 100, 0)).size == 1


def test_different_ranks_never_share_an_id():
    rank, times = np.meshgrid(np.arange(1000), np.arange(0, 50_000, 1000))
    ids = planted._holders(rank.ravel(), times.ravel(), 1000, 5000)
    holders = {}
    for number, holder in zip(ids.tolist(), rank.ravel().tolist(), strict=True):
        assert holders.setdefault(number, holder) == holder


def test_new_ids_keep_arriving_and_old_ones_fade(train):
    tenth = len(train.labels) // 10
    table = planted._CARDINALITIES.index(200)
    early = set(train.ids[:tenth, table].tolist())
    middle = set(train.ids[5 * tenth : 6 * tenth, table].tolist())
    late = set(train.ids[-tenth:, table].tolist())
    assert len(late - early) > len(middle - early) > 20
    assert len(early - late) > 20
    still = joined(DemoStream(200_000, 1, lifetime=None), "train")
    assert len(set(still.ids[:, table].tolist())) <= 200
    small = planted._CARDINALITIES.index(18)
    assert len(set(train.ids[:, small].tolist())) <= 18


def test_most_pairs_are_rare(default, train):
    counts = np.bincount(default.vocabulary().rows(train.ids).ravel())
    assert len(counts) == default.vocabulary().num_pairs
    assert counts.min() == 1  # the vocabulary holds nothing else
    assert 0.5 < np.mean(counts <= 1) < 0.8
    assert default.vocabulary() is default.vocabulary()


def test_bayes_is_the_score_of_the_true_probabilities(default, test):
    truth = default.probabilities("test")
    auc, loss = default.bayes()
    assert auc == roc_auc_score(test.labels, truth)
    assert loss == pytest.approx(log_loss(test.labels, truth))
    assert 0.78 < auc < 0.85


@pytest.mark.parametrize("seed", range(4))
def test_click_rate_and_calibration(seed):
    stream = DemoStream(100_000, 20_000, seed)
    labels, truth = joined(stream, "train").labels, stream.probabilities("train")
    assert 0.2 < labels.mean() < 0.3
    assert 0.78 < stream.bayes().auc < 0.85
    # In every tenth of the probabilities, labels agree with them up to 4 sigma.
    for part in np.array_split(np.argsort(truth), 10):
        error = np.sqrt(np.mean(truth[part] * (1 - truth[part])) / len(part))
        assert abs(labels[part].mean() - truth[part].mean()) < 4 * error


AT = 3000


def halves(changes=()) -> tuple[Batch, Batch, np.ndarray]:
    """A stream before and after `AT`, and its probabilities."""
    stream = DemoStream(9000, 1, changes=changes)
    whole = joined(stream, "train")
    before = Batch(*(array[:AT] for array in whole))
    after = Batch(*(array[AT:] for array in whole))
    return before, after, stream.probabilities("train")


def test_a_change_may_be_a_plain_pair():
    plain, named = halves([(AT, "concept")]), halves([Change(AT, "concept")])
    assert_same(plain[1], named[1])


@pytest.mark.parametrize("kind", ["popularity", "concept"])
def test_a_change_leaves_alone_what_comes_before_it(kind):
    before, after, truth = halves()
    same, other, changed = halves([Change(AT, kind)])
    assert_same(same, before)
    np.testing.assert_array_equal(changed[:AT], truth[:AT])
    assert np.all(changed[AT:] != truth[AT:])
    assert np.mean(other.labels != after.labels) > 0.1
    np.testing.assert_array_equal(other.dense, after.dense)


def test_a_change_of_popularity_moves_the_ranks_of_the_tables_that_drift():
    _, after, _ = halves()
    _, other, _ = halves([Change(AT, "popularity")])
    large = np.greater_equal(planted._CARDINALITIES, 100)
    np.testing.assert_array_equal(other.ids[:, ~large], after.ids[:, ~large])
    for table in np.flatnonzero(large):
        ids, counts = np.unique(after.ids[:, table], return_counts=True)
        popular = ids[counts.argmax()]
        assert np.sum(other.ids[:, table] == popular) < counts.max() / 4
    ranks, turns = np.arange(10), np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    before = planted._turned(ranks, turns, 10)  # by 6 for every change
    assert before.tolist() == [0, 7, 4, 3, 0, 7, 6, 3, 0, 9]


def test_a_change_of_concept_gives_half_of_the_ids_another_effect():
    _, after, _ = halves()
    _, other, _ = halves([Change(AT, "concept")])
    np.testing.assert_array_equal(other.ids, after.ids)
    ids, salt = np.arange(100_000), np.uint64(2**64 - 7)
    hashes = [planted._effects(ids, salt, np.full(len(ids), n)) for n in range(3)]
    np.testing.assert_array_equal(hashes[0], planted._hash(ids, salt))
    for first, second in ((0, 1), (1, 2)):
        kept = np.mean(hashes[first] == hashes[second])
        assert kept == pytest.approx(0.5, abs=0.01)
    assert np.mean(hashes[0] == hashes[2]) == pytest.approx(0.25, abs=0.01)
    mixed = planted._effects(ids, salt, ids % 3)
    np.testing.assert_array_equal(mixed, np.choose(ids % 3, hashes))


def test_probabilities_are_true_after_changes():
    changes = [
        *(Change(at, "concept") for at in (120_000, 110_000)),
        Change(50_000, "popularity"),
    ]
    stream = DemoStream(100_000, 60_000, changes=changes)
    labels, truth = joined(stream, "test").labels, stream.probabilities("test")
    for part in np.array_split(np.argsort(truth), 10):
        error = np.sqrt(np.mean(truth[part] * (1 - truth[part])) / len(part))
        assert abs(labels[part].mean() - truth[part].mean()) < 4 * error
    assert stream.bayes().auc == roc_auc_score(labels, truth)
    reordered = DemoStream(100_000, 60_000, changes=changes[::-1])
    assert_same(joined(reordered, "test"), joined(stream, "test"))


def test_bayes_auc_of_labels_of_one_kind_is_undefined():
    assert np.isnan(DemoStream(1, 1).bayes().auc)


def test_a_linear_model_learns_most_of_it(default, train, test):
    def features(batch: Batch):
        rows = default.vocabulary().rows(batch.ids)
        known = rows >= 0
        ends = np.append(0, np.cumsum(known.sum(axis=1)))
        shape = (len(rows), default.vocabulary().num_pairs)
        one_hot = sparse.csr_matrix((np.ones(ends[-1]), rows[known], ends), shape)
        return sparse.hstack([one_hot, sparse.csr_matrix(batch.dense / 3)], "csr")

    model = SGDClassifier(
        loss="log_loss",
        alpha=1e-6,
        learning_rate="constant",
        eta0=0.01,
        shuffle=False,
    )
    model.partial_fit(features(train), train.labels, classes=[0, 1])  # one pass
    auc = roc_auc_score(test.labels, model.decision_function(features(test)))
    closed = (auc - 0.5) / (default.bayes().auc - 0.5)
    assert 0.75 < closed < 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train is 0, must be an integer of at least 1"),
        ({"num_test": -5}, "num_test is -5"),
        ({"num_train": 1e5}, "num_train is 100000.0"),
        ({"seed": -1}, "seed is -1, must be an integer of at least 0"),
        ({"lifetime": 1}, "lifetime is 1, must be None or between 2 and"),
        ({"lifetime": 1 << 31}, "lifetime is 2147483648"),
        ({"changes": [(0, "concept")]}, r"changes\[0\].at is 0, must be an integer"),
        ({"changes": [(9,)]}, r"changes\[0\] is \(9,\), must be a Change"),
        ({"changes": [9]}, r"changes\[0\] is 9, must be a Change"),
        ({"changes": [(9, "taste")]}, r"changes\[0\].kind is 'taste', must be one"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        DemoStream(**arguments)


def test_batches_check_their_arguments_at_once():
    stream = DemoStream(10, 10)
    with pytest.raises(ValueError, match="split is 'valid'"):
        stream.batches("valid", 8)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="batch_size is 0"):
        stream.batches("train", 0)
