import jax.numpy as jnp
import numpy as np
import pytest

from fiited_jax.bidding import bid, find_leaders


@pytest.mark.parametrize("num_labels", [1, 3, 100, 1 << 30])
@pytest.mark.parametrize("num_lanes", [0, 1, 2, 100, 1000])
def test_leaders_are_the_first_of_their_label(num_lanes, num_labels):
    rng = np.random.default_rng(num_lanes)
    labels = rng.integers(0, num_labels, num_lanes).astype(np.int32)
    taking_part = rng.random(num_lanes) < 0.9
    first = {}
    expected = [
        first.setdefault(label, lane) if part else num_lanes
        for lane, (label, part) in enumerate(
            zip(labels.tolist(), taking_part, strict=True)
        )
    ]
    got = find_leaders(jnp.asarray(labels), jnp.asarray(taking_part))
    np.testing.assert_array_equal(got, expected)


def test_every_round_has_a_winner():
    labels = jnp.arange(500, dtype=jnp.int32)
    for salt in range(8):
        winners = bid(labels, labels >= 0, jnp.uint32(salt))
        won = np.asarray(winners) == np.arange(500)
        assert won.any()
        assert not won.all()  # some share a slot, so a second round is needed
