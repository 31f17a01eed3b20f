"""Kernels for the TensorCore of a TPU, by Pallas Mosaic.

The pool stays where it is, in lines of 128 lanes: a line is the least that can be
copied from it.
"""

from .gather import gather_chunks as gather_chunks
from .probe import probe_and_load as probe_and_load
from .update import update_chunks as update_chunks
