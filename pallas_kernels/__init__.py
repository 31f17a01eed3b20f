"""Paged gather, scatter and probe kernels: arrays in, arrays out.

The package knows nothing of embeddings or optimizers. `api` validates,
`dispatch` chooses a kernel, `reference` is pure `jax.numpy` and always there.
"""

from .api import gather_chunks as gather_chunks
from .api import gather_runs as gather_runs
from .api import probe_and_load as probe_and_load
from .api import probe_page_table as probe_page_table
from .api import scatter_chunks as scatter_chunks
from .api import update_chunks as update_chunks
from .checks import debug_mode as debug_mode
from .reference import NO_WAY as NO_WAY
from .reference import NULL_FRAME as NULL_FRAME
from .windows import exchange_windows as exchange_windows
from .windows import gather_windows as gather_windows
from .windows import num_windows as num_windows
from .windows import scatter_windows as scatter_windows

__all__ = [
    "NO_WAY",
    "NULL_FRAME",
    "debug_mode",
    "exchange_windows",
    "gather_chunks",
    "gather_runs",
    "gather_windows",
    "num_windows",
    "probe_and_load",
    "probe_page_table",
    "scatter_chunks",
    "scatter_windows",
    "update_chunks",
]
