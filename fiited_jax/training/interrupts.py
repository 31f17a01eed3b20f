"""Ctrl-C between steps instead of inside them."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["interrupts_between_steps"]


@contextlib.contextmanager
def interrupts_between_steps() -> Iterator[Callable[[], None]]:
    """Hold interrupts back until they are asked for.

    A `KeyboardInterrupt` inside a dispatch to the runtime can crash the process at its
    exit.

    Yields:
      A function to call between steps: raises `KeyboardInterrupt` if there was one.
    """
    pending = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        pending.set()

    def check() -> None:
        if pending.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check  # signals reach the main thread alone
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
