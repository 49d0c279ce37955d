"""Threads that share work sleep where they wait, while other processes want the cores."""

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path

import torch

from pgraft_fast import waiting

# Seconds between two looks, and the share of one thread's time that is lost in the queue for a core on a busy machine.
_LOOK_EVERY = 0.04
_BUSY = 0.4
_SHARED_ELEMENTS = 1 << 17


class Watch:
    """A thread that looks now and then how long this process queues for cores, and makes its threads sleep where they
    wait once that is long.

    libgomp's threads spin next to not at all while there are more of them than cores (its manual, GOMP_SPINCOUNT), so
    the watching thread begins a team of its own, which sleeps until `close`. busy: set once that was so.
    """

    def __init__(self, busy: threading.Event) -> None:
        self._busy, self._done = busy, threading.Event()
        self._thread = threading.Thread(target=self._run, name="pgraft-fast-watch", daemon=True)
        self._thread.start()

    @staticmethod
    def helps() -> bool:
        """Whether nobody said how to wait before torch was loaded, and the system tells of queues."""
        return not waiting.is_settled() and Path("/proc/self/schedstat").exists()

    def close(self) -> None:
        """End it; threads wait as before."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        began, queued = time.perf_counter(), _queued()
        while not self._busy.is_set():
            if self._done.wait(_LOOK_EVERY):
                return
            now, queued_now = time.perf_counter(), _queued()
            if queued_now - queued > _BUSY * (now - began):
                self._busy.set()
            began, queued = now, queued_now
        # torch settles the number of a thread when it first asks for it, so ours comes after that.
        torch.get_num_threads()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libgomp.so.1").omp_set_num_threads((os.cpu_count() or 1) + 1)
        torch.empty(_SHARED_ELEMENTS).fill_(1.0)
        self._done.wait()


def _queued() -> float:
    """Seconds that the threads of this process have waited for a core."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        # A thread may end meanwhile.
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_bytes().split()[1])
    return total / 1e9
