"""Flax modules over the store's functions."""

from . import nnx as nnx

__all__ = ["nnx"]
