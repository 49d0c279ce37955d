"""Ctrl-C and SIGTERM: the first asks the run to stop at a safe point, the second ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pgraft_fast.errors import StoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """`check()` raises StoppedError once a signal came."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def check(self) -> None:
        """Call it between batches and steps."""
        if self.signal is not None:
            raise StoppedError(f"stopped by {signal.Signals(self.signal).name}")


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handlers for the block; outside the main thread signals are left alone."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            os._exit(128 + number)
        request.signal = number

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
