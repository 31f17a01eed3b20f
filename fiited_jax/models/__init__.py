"""Recommender models over an embedding module."""

from .dlrm import DLRM as DLRM

__all__ = ["DLRM"]
