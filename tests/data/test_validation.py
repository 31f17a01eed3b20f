"""The validation slice: which examples, which vocabulary, what is never read."""

import numpy as np
import pytest

from fiited_jax.data import DemoStream, ValidationStream, Vocabulary
from stream_checks import assert_same, joined, whole


class Untouchable(DemoStream):
    """A stream whose test split must not be read."""

    def batches(self, split, batch_size):
        assert split == "train"
        return super().batches(split, batch_size)

    def bayes(self):
        raise AssertionError


@pytest.mark.parametrize("num_train", [100, 40_000])
def test_the_slice_is_the_end_of_the_train_split(num_train):
    stream = Untouchable(num_train, 30)
    cut = ValidationStream(stream, 0.25)
    assert (cut.num_train, cut.num_test) == (num_train * 3 // 4, num_train // 4)
    assert len(joined(cut, "train", 512).labels) == cut.num_train
    assert_same(whole(cut), joined(stream, "train", 512))
    assert cut.bayes() is None
    for name in ("name", "num_dense", "num_tables"):
        assert getattr(cut, name) == getattr(stream, name)


def test_its_vocabulary_is_that_of_its_own_train_split():
    cut = ValidationStream(Untouchable(1000, 30), 0.5)
    wanted = Vocabulary.from_batches([joined(cut, "train").ids], cut.num_tables)
    assert cut.vocabulary() is cut.vocabulary()
    for got, ids in zip(cut.vocabulary().tables, wanted.tables, strict=True):
        np.testing.assert_array_equal(got, ids)
    assert wanted.num_pairs < cut._stream.vocabulary().num_pairs


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), 0.01, 0.99])
def test_no_part_may_be_empty(fraction):
    with pytest.raises(ValueError, match=r"fraction must .* got"):
        ValidationStream(DemoStream(20, 5), fraction)


def test_only_known_splits_and_batch_sizes():
    cut = ValidationStream(DemoStream(20, 5), 0.5)
    with pytest.raises(ValueError, match="split"):
        cut.batches("valid", 4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="batch_size"):
        cut.batches("test", 0)
