"""Ablations: method `fiited` with one option changed at a time."""

import dataclasses
from typing import Any, NamedTuple

from ..training import SharedOptions

__all__ = ["Change", "changes"]


class Change(NamedTuple):
    """An option and what it is instead.

    Attributes:
      option: its name.
      value: what it is.
    """

    option: str
    value: Any

    def __str__(self) -> str:
        """Return it as `scorer=frequency`."""
        return f"{self.option}={self.value}"


_NEVER = 1e9  # steps: longer than any run
_TRIED: dict[str, tuple[Any, ...]] = {
    "scorer": ("grad_norm", "fiited", "frequency", "saliency"),
    "ranking": ("lengths", "chunks"),
    "length_alpha": (1.0, 2.0, 4.0, 8.0),
    "chunk_dim": (1, 2, 4, 8, 16, 32, 64),
    "frames_per_entry": (1.0, 2.0, 4.0),
    "fallback": ("zero", "shared", "coarse"),
    "prune_interval": (10, 50, 200, 1000),
    "half_life": (500.0, 2000.0, 8000.0, _NEVER),
    "filter_share": (0.0, 0.05),
    "value_dtype": ("float32", "bfloat16"),
    "page_table": ("hashed", "rows"),
}


def changes(options: SharedOptions) -> list[Change]:
    """Return the changes that options leave to try: what they hold is none.

    Args:
      options: what is changed.

    Returns:
      The changes that a store allows.

    >>> [str(change) for change in changes(SharedOptions(embedding_dim=2))][-1]
    'page_table=rows'
    """
    tried = [Change(name, value) for name, values in _TRIED.items() for value in values]
    return [change for change in tried if _makes_sense(change, options)]


def _makes_sense(change: Change, options: SharedOptions) -> bool:
    """Whether it changes something, and the store takes it with the other options."""
    held = getattr(options, change.option)
    if change.option == "length_alpha" and options.ranking != "lengths":
        return False
    if change.value == held:
        return False
    try:
        dataclasses.replace(options, **{change.option: change.value})
    except ValueError:
        return False
    return True
