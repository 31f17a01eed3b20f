"""Flax modules over the store's functions."""

from . import linen as linen
from . import nnx as nnx

__all__ = ["linen", "nnx"]
