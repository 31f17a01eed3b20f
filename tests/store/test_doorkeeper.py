import jax.numpy as jnp
import numpy as np

from fiited_jax.doorkeeper import recognize, slots_and_tags
from fiited_jax.keys import Keys
from fiited_jax.page_table import buckets_of


def numbered(size):
    """Keys 0, 1, 2 and on, of table 0."""
    low = jnp.arange(size, dtype=jnp.uint32)
    return Keys(low, jnp.zeros_like(low)), jnp.zeros(size, jnp.int32)


def test_no_tag_says_that_nothing_is_remembered():
    slots, tags = map(np.asarray, slots_and_tags(*numbered(1 << 14), 1000))
    assert tags.min() == 1
    counts = np.bincount(tags, minlength=256)
    assert counts[1] > 1.5 * counts[2:].mean()  # those of 0 too
    assert counts[2:].min() > 20
    assert slots.min() >= 0
    assert np.bincount(slots, minlength=1000).max() < 50
    assert slots.max() < 1000


def test_keys_of_one_bucket_or_slot_are_told_apart():
    keys, tables = numbered(1 << 16)
    slots, tags = map(np.asarray, slots_and_tags(keys, tables, 64))
    buckets = np.asarray(buckets_of(keys, tables, 64))
    assert len(set(slots[buckets == 5])) == 64
    assert len(set(tags[slots == 5])) > 200


def test_every_part_of_a_key_is_remembered():
    one, zero = jnp.ones(1, jnp.uint32), jnp.zeros(1, jnp.uint32)
    table, asking = jnp.zeros(1, jnp.int32), jnp.ones(1, bool)
    memory, _ = recognize(jnp.zeros(1 << 12, jnp.uint8), Keys(one, zero), table, asking)
    assert recognize(memory, Keys(one, zero), table, asking)[1]
    for keys, tables in (
        (Keys(one, one), table),
        (Keys(zero, zero), table),
        (Keys(one, zero), table + 1),
    ):
        assert not recognize(memory, keys, tables, asking)[1]
