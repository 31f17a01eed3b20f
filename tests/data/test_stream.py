"""The batches of a stream: cutting and joining them."""

from collections.abc import Iterator

import numpy as np
import pytest

from fiited_jax.data import Batch, rebatch
from fiited_jax.data.demo import DemoStream
from fiited_jax.data.stream import check_count, split_bounds


def examples(sizes: list[int]) -> Iterator[Batch]:
    """Yield batches whose every array tells the example's position in the stream."""
    first = 0
    for size in sizes:
        place = np.arange(first, first + size)
        yield Batch(
            place.astype(np.float32),
            np.stack([place, -place], axis=1).astype(np.float32),
            place[:, None] * 10,
        )
        first += size


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 24, 25, 1000])
@pytest.mark.parametrize(
    "sizes", [[25], [1] * 25, [0, 5, 0, 13, 7, 0], [24, 1], [3, 22], []]
)
def test_rebatch_keeps_every_example_in_order(sizes, batch_size):
    total = sum(sizes)
    batches = list(rebatch(examples(sizes), batch_size))
    lengths = [len(batch.labels) for batch in batches]
    assert lengths == [
        min(batch_size, total - first) for first in range(0, total, batch_size)
    ]
    if batches:
        labels, dense, ids = map(np.concatenate, zip(*batches, strict=True))
        place = np.arange(total)
        np.testing.assert_array_equal(labels, place)
        np.testing.assert_array_equal(dense, np.stack([place, -place], axis=1))
        np.testing.assert_array_equal(ids, place[:, None] * 10)
        assert labels.dtype == dense.dtype == np.float32
        assert ids.dtype == np.int64


def test_rebatch_reads_no_further_than_needed():
    read = []

    def source():
        for batch in examples([4, 4, 4]):
            read.append(len(batch.labels))
            yield batch

    next(rebatch(source(), 4))
    assert read == [4]


def test_rebatch_copies_each_example_at_most_once(monkeypatch):
    copied = 0
    concatenate = np.concatenate

    def counting(arrays):
        nonlocal copied
        joined = concatenate(arrays)
        copied += len(joined)
        return joined

    monkeypatch.setattr(np, "concatenate", counting)
    list(rebatch(examples([1] * 1000), 1000))
    assert copied == 3 * 1000  # three arrays
    list(rebatch(examples([1000]), 10))
    assert copied == 3 * 1000


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8"])
def test_rebatch_refuses_the_batch_size_at_once(batch_size):
    with pytest.raises(ValueError, match=r"batch_size is .*at least 1"):
        rebatch(examples([3]), batch_size)


def test_check_count_accepts_integers_from_the_bound_up():
    check_count("number", 0, low=0)
    check_count("number", np.int64(7), low=7)
    with pytest.raises(ValueError, match=r"number is 6, must be .* at least 7"):
        check_count("number", 6, low=7)


def test_split_bounds_put_test_behind_train():
    stream = DemoStream(num_train=30, num_test=12)
    assert split_bounds(stream, "train") == (0, 30)
    assert split_bounds(stream, "test") == (30, 42)
    with pytest.raises(ValueError, match=r"split is 'valid'.*'train', 'test'"):
        split_bounds(stream, "valid")  # pyright: ignore[reportArgumentType]
