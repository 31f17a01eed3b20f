"""Embedding methods under one protocol."""

from collections.abc import Callable

from .adaembed import adaembed
from .base import Embed as Embed
from .base import Method as Method
from .base import Request as Request
from .cafe import cafe
from .fiited import fiited
from .fiited_paper import fiited_paper
from .full import full
from .hash import hash_trick
from .itep import itep
from .mixed_dim import mixed_dim
from .pep import pep
from .qr import qr
from .small_dim import small_dim

__all__ = ["METHODS", "STORE_OPTIONS", "Embed", "Method", "Request", "options_read"]

METHODS: dict[str, Callable[[Request], Method]] = {
    "adaembed": adaembed,
    "cafe": cafe,
    "fiited": fiited,
    "fiited_paper": fiited_paper,
    "full": full,
    "hash": hash_trick,
    "itep": itep,
    "mixed_dim": mixed_dim,
    "pep": pep,
    "qr": qr,
    "small_dim": small_dim,
}

STORE_OPTIONS = frozenset(
    {
        "chunk_dim",
        "scorer",
        "ranking",
        "length_alpha",
        "half_life",
        "frames_per_entry",
        "filter_share",
        "fallback",
        "shared_share",
        "value_dtype",
        "page_table",
        "prune_interval",
        "prune_warmup",
    }
)
"""Options of a training run that only stores read."""

_SCHEDULE = frozenset({"prune_interval", "prune_warmup"})
_READ = {
    "adaembed": _SCHEDULE,
    "cafe": _SCHEDULE,
    "fiited": STORE_OPTIONS,
    "fiited_paper": _SCHEDULE | {"half_life"},
    "itep": _SCHEDULE,
}


def options_read(method: str) -> frozenset[str]:
    """Return which of `STORE_OPTIONS` a method reads; the others do not change it."""
    return _READ.get(method, frozenset())
