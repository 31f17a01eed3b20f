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
from .qr import qr
from .small_dim import small_dim

__all__ = ["METHODS", "Embed", "Method", "Request"]

METHODS: dict[str, Callable[[Request], Method]] = {
    "adaembed": adaembed,
    "cafe": cafe,
    "fiited": fiited,
    "fiited_paper": fiited_paper,
    "full": full,
    "hash": hash_trick,
    "itep": itep,
    "mixed_dim": mixed_dim,
    "qr": qr,
    "small_dim": small_dim,
}
