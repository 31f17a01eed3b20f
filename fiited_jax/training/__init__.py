"""Training a click model: options, loop, outputs. Needs the `[train]` extra."""

from .loop import Trainer as Trainer
from .loop import TrainResult as TrainResult
from .options import TrainOptions as TrainOptions
from .outputs import check_writable as check_writable
from .outputs import print_summary as print_summary
from .outputs import summarize as summarize
from .outputs import write_outputs as write_outputs
from .progress import SilentReporter as SilentReporter
from .progress import make_reporter as make_reporter
from .room import StoreFullError as StoreFullError
from .shared_options import SharedOptions as SharedOptions
from .shared_options import optional as optional
from .streams import open_stream as open_stream

__all__ = [
    "SharedOptions",
    "SilentReporter",
    "StoreFullError",
    "TrainOptions",
    "TrainResult",
    "Trainer",
    "check_writable",
    "make_reporter",
    "open_stream",
    "optional",
    "print_summary",
    "summarize",
    "write_outputs",
]
