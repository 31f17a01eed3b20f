"""What tests of every reader look at: whole splits and exact equality."""

import numpy as np

from fiited_jax.data import Batch, ClickStream, Split


def joined(stream: ClickStream, split: Split, batch_size: int = 7) -> Batch:
    """Join the batches of a split; all but the last must be full."""
    batches = list(stream.batches(split, batch_size))
    assert all(len(batch.labels) == batch_size for batch in batches[:-1])
    return Batch(*map(np.concatenate, zip(*batches, strict=True)))


def whole(stream: ClickStream) -> Batch:
    """Join both splits."""
    parts = (joined(stream, "train"), joined(stream, "test"))
    return Batch(*map(np.concatenate, zip(*parts, strict=True)))


def assert_same(left: Batch, right: Batch):
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
