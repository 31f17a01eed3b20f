"""Checks of arguments: errors that name the argument, what came and what is allowed."""

from collections.abc import Iterable
from typing import Any

__all__ = [
    "BudgetError",
    "check_choice",
    "check_int",
    "check_number",
    "check_share",
]


class BudgetError(ValueError):
    """A budget that does not go with what it shall hold: mostly, it is too small."""


def check_int(name: str, value: Any, least: int) -> None:
    """Refuse what is not an `int` of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Refuse what is not a number from `low` to `high`."""
    _check_real(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value}")


def check_share(name: str, value: Any) -> None:
    """Refuse what is not a number in [0, 1)."""
    _check_real(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be a share in [0, 1), got {value}")


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Refuse what is none of a few values.

    >>> check_choice("id_bits", 16, (32, 64))
    Traceback (most recent call last):
    ValueError: id_bits must be 32 or 64, got 16
    """
    options = list(allowed)
    if value not in options:
        raise ValueError(
            f"{name} must be {' or '.join(map(repr, options))}, got {value!r}"
        )


def _check_real(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
