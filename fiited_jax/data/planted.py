"""The planted model behind the generated stream: who is popular, and what ids do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from .stream import check_count

__all__ = [
    "NUM_DENSE",
    "NUM_TABLES",
    "Change",
    "Planted",
    "check_changes",
    "draw",
    "generator",
    "plant",
    "raw_logits",
]

NUM_DENSE = 13
_ID_BITS = 31

# Ranks per table, about as in Criteo: few values, many values, and open-ended ones.
_CARDINALITIES = (
    *(1_000, 500, 300_000, 60_000, 200, 18, 8_000, 150, 3, 20_000),
    *(3_000, 600_000, 2_000, 24, 5_000, 100_000, 10, 1_500, 600, 4),
    *(1_000_000, 12, 300, 200_000, 100, 30_000),
)
NUM_TABLES = len(_CARDINALITIES)

# Ids of tables with fewer ranks are kinds (weekday, device) rather than items and stay.
_FIRST_DRIFTING = 100

# Effects of ids are strongest in tables with fewer ranks than this: drawn often enough
# to be learned, and yet many.
_FIRST_LARGE = 10_000

# Tables whose hidden factors are multiplied: small enough to be learned from the demo.
_PAIRS = ((0, 5), (1, 8), (4, 16), (7, 13), (18, 19), (22, 21), (24, 5), (12, 8))
_NUM_FACTORS = 3
_INTERACTION = 0.35
_DENSE_WEIGHT = 0.35

_NORMAL_BITS = 16

# Golden: no two changes in a row lead back.
_TURN = 0.618

# Odd, so that the keys of no two changes are equal.
_NEXT_SALT = 0xD1B54A32D192ED03


_Kind = Literal["popularity", "concept"]


class Change(NamedTuple):
    """A sudden change of the stream.

    Attributes:
      at: The first example that it holds for, counted from the start of the stream.
      kind: `"popularity"`: in every table of 100 ranks or more the ids change ranks,
        by 0.62 of the table, so that popular ids become rare and hardly known ones
        popular. `"concept"`: of every table half of the ids, chosen by hash, get
        another effect on the labels.
    """

    at: int
    kind: _Kind


class Planted(NamedTuple):
    """The planted model of one seed.

    Attributes:
      exponents: float64[tables], of the Zipf laws.
      lifetimes: int64[tables], examples for which an id holds a rank; 0 is forever.
      salts: uint64[tables], keys of the hashes that give ids their effects.
      normals: float64[2**16], the values that hashes pick from.
      dense_scales: float64[dense], of the counts behind the dense features.
      dense_weights: float64[dense].
    """

    exponents: np.ndarray
    lifetimes: np.ndarray
    salts: np.ndarray
    normals: np.ndarray
    dense_scales: np.ndarray
    dense_weights: np.ndarray


def check_changes(changes: Sequence[Change]) -> tuple[Change, ...]:
    """Return changes, also of plain pairs.

    Raises:
      ValueError: if one has no meaning.
    """
    kinds, checked = get_args(_Kind), []
    for number, change in enumerate(changes):
        if not isinstance(change, tuple) or len(change) != 2:
            raise ValueError(f"changes[{number}] is {change!r}, must be a Change")
        at, kind = change
        check_count(f"changes[{number}].at", at)
        if kind not in kinds:
            raise ValueError(
                f"changes[{number}].kind is {kind!r}, must be one of {kinds}"
            )
        checked.append(Change(at, kind))
    return tuple(checked)


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return the source of randomness of a part of the stream."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def plant(seed: int, lifetime: int | None) -> Planted:
    """Draw the planted model of a seed; see `DemoStream` for the lifetime."""
    source = generator(seed, 0, 0)
    exponents = source.uniform(1.02, 1.2, NUM_TABLES)
    lifetimes = np.zeros(NUM_TABLES, np.int64)
    if lifetime is not None:
        spread = source.uniform(0.5, 1.5, NUM_TABLES)
        lifetimes[:] = np.maximum(lifetime * spread, 1)
        lifetimes[np.less(_CARDINALITIES, _FIRST_DRIFTING)] = 0
    return Planted(
        exponents,
        lifetimes,
        source.integers(1 << 64, size=NUM_TABLES, dtype=np.uint64),
        source.standard_normal(1 << _NORMAL_BITS),
        source.uniform(1, 20, NUM_DENSE),
        source.standard_normal(NUM_DENSE),
    )


def draw(
    planted: Planted,
    times: np.ndarray,
    source: np.random.Generator,
    changes: Sequence[Change] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ids int64[tables, B] and dense float32[B, num_dense] for times int64[B]."""
    ids = np.empty((NUM_TABLES, len(times)), np.int64)
    turns = _count(changes, "popularity", times)
    for table, ranks in enumerate(_CARDINALITIES):
        uniform = source.random(len(times))
        rank = _zipf_ranks(uniform, ranks, planted.exponents[table])
        if ranks >= _FIRST_DRIFTING:
            rank = _turned(rank, turns, ranks)
        ids[table] = _holders(rank, times, ranks, int(planted.lifetimes[table]))
    counts = source.standard_exponential((len(times), NUM_DENSE), np.float32)
    counts *= planted.dense_scales.astype(np.float32)
    return ids, np.log1p(np.floor(counts))


def _count(changes: Sequence[Change], kind: _Kind, times: np.ndarray) -> np.ndarray:
    """Return how many changes of a kind came up to each time, int64[B]."""
    starts = sorted(change.at for change in changes if change.kind == kind)
    return np.searchsorted(starts, times, side="right")


def _turned(rank: np.ndarray, turns: np.ndarray, ranks: int) -> np.ndarray:
    """Return the ranks that today's ranks had before so many changes of popularity."""
    return (rank + turns * int(_TURN * ranks)) % ranks


def _zipf_ranks(uniform: np.ndarray, ranks: int, exponent: float) -> np.ndarray:
    """Turn uniforms into ranks 0..ranks-1 by inverting a power law's integral.

    The density x**-exponent on [1, ranks + 1), rounded down, is close to the Zipf law
    and needs no table.
    """
    power = 1 - exponent
    rank = (1 + uniform * ((ranks + 1) ** power - 1)) ** (1 / power)
    return np.minimum(rank.astype(np.int64), ranks) - 1


def _holders(
    rank: np.ndarray, times: np.ndarray, ranks: int, lifetime: int
) -> np.ndarray:
    """Return the id, in [0, 2**31), that holds each rank at each time."""
    number = rank
    if lifetime:
        # Golden-ratio steps spread the replacements of neighbouring ranks over time.
        phase = ((rank * 0x9E3779B1 & 0xFFFFFFFF) * lifetime) >> 32
        number = rank + (times + phase) // lifetime * ranks
    # An odd factor permutes [0, 2**31): ids look like hashes, and stay distinct until
    # a table has used up all of them.
    return number * 0x5851F42D & ((1 << _ID_BITS) - 1)


def raw_logits(
    planted: Planted,
    times: np.ndarray,
    ids: np.ndarray,
    dense: np.ndarray,
    changes: Sequence[Change] = (),
) -> np.ndarray:
    """Return uncalibrated logits float64[B] of ids [tables, B] and dense [B, 13]."""
    centred = dense - np.log1p(planted.dense_scales)
    logits = _DENSE_WEIGHT * (centred @ planted.dense_weights)
    shifts = _count(changes, "concept", times)
    hashes = [
        _effects(column, salt, shifts)
        for column, salt in zip(ids, planted.salts, strict=True)
    ]
    for ranks, hashed in zip(_CARDINALITIES, hashes, strict=True):
        logits += _table_weight(ranks) * _normal(planted, hashed, 0)
    for left, right in _PAIRS:
        for factor in range(1, 1 + _NUM_FACTORS):
            product = _normal(planted, hashes[left], factor)
            product *= _normal(planted, hashes[right], factor)
            logits += _INTERACTION / _NUM_FACTORS**0.5 * product
    return logits


def _table_weight(ranks: int) -> float:
    """Return the standard deviation of the effects of a table's ids."""
    if ranks < _FIRST_DRIFTING:
        return 0.4
    return 0.5 if ranks < _FIRST_LARGE else 0.2


def _effects(ids: np.ndarray, salt: np.uint64, shifts: np.ndarray) -> np.ndarray:
    """Hash ids int64[B] of a table to what their effects are after changes of concept.

    Args:
      ids: Of the table.
      salt: Of the table.
      shifts: How many changes there were, int64[B].
    """
    hashed = _hash(ids, salt)
    for number in range(1, int(shifts.max(initial=0)) + 1):
        other = np.uint64(int(salt) + number * _NEXT_SALT & 0xFFFFFFFFFFFFFFFF)
        chosen = _hash(ids, ~other) >> np.uint64(63) == 1
        hashed = np.where(chosen & (shifts >= number), _hash(ids, other), hashed)
    return hashed


def _hash(ids: np.ndarray, salt: np.uint64) -> np.ndarray:
    """Hash ids int64[B] to uint64[B] with well mixed bits (multiply and xor-shift)."""
    mixed = (ids.astype(np.uint64) + salt) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _normal(planted: Planted, hashed: np.ndarray, number: int) -> np.ndarray:
    """Return the normal deviate float64[B] that 16 bits (0..3) of a hash stand for."""
    bits = hashed >> np.uint64(number * _NORMAL_BITS)
    return planted.normals[(bits & np.uint64((1 << _NORMAL_BITS) - 1)).astype(np.intp)]
