"""How ids go to methods that keep keys."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..keys import Keys, keys_from_int64
from .base import Rows

__all__ = ["IdWords", "id_words"]

_SHORT = 1 << 32


class IdWords(NamedTuple):
    """What a method takes for ids.

    Attributes:
      bits: 32 or 64 that it must keep of each.
      encode: turns `int64[B, F]` ids into keys; on the host.
    """

    bits: int
    encode: Callable[[np.ndarray], Keys]


def id_words(vocabulary: Rows) -> IdWords:
    """Choose the words for the ids of a training split.

    Readers place the category of missing values beyond 32 bits, where no hash is. If it
    is the only id there, it changes places with a number that no table has: keys are
    shorter, and still no two ids share one. Ids that are wider than `bits` are unknown.

    >>> from fiited_jax.data import Vocabulary
    >>> words = id_words(Vocabulary([np.array([7, 1 << 32])]))
    >>> words.bits, words.encode(np.array([[1 << 32, (1 << 32) - 1]]))
    (32, Keys(low=array([[4294967295,          0]], dtype=uint32), \
high=array([[0, 1]], dtype=uint32)))
    """
    # Tables are sorted: those that have a wide id end with it.
    wide = {int(ids[-1]) for ids in vocabulary.tables if len(ids) and ids[-1] >= _SHORT}
    wide |= {int(ids[-2]) for ids in vocabulary.tables if len(ids) > 1}
    wide = {number for number in wide if number >= _SHORT}
    if len(wide) != 1:
        return IdWords(vocabulary.id_bits, keys_from_int64)
    (marker,) = wide
    stand_in = _SHORT - 1
    while any(np.any(ids == stand_in) for ids in vocabulary.tables):
        stand_in -= 1

    def encode(ids: np.ndarray) -> Keys:
        is_marker, is_other = ids == marker, ids == stand_in
        swapped = np.where(is_marker, stand_in, np.where(is_other, marker, ids))
        return keys_from_int64(swapped)

    return IdWords(32, encode)
