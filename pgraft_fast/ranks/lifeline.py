"""Signs of life and of failure between ranks, beside their work: nobody waits for one that is gone.

Every rank writes a beat into the store of the launcher and watches that of the next one; what fails anywhere stands
there for all to read. A rank that cannot leave its work in time then, because it waits in a message that will never
come, is ended: what is finished is safe on disk.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from pgraft_fast.ranks.environment import UNEXPECTED

# Of a beat; without one for so long a rank is gone; and for so long a rank may go on once it has heard of a failure.
EVERY, SILENT, GRACE = 1.0, 15.0, 10.0
_LOST = "the launcher, or the machine of rank 0, is gone"


class Lifeline:
    """failure: what was heard of, one line, or None. passed: messages that this rank has exchanged with the others.
    end(status): leaves the process; clock: seconds.
    """

    def __init__(
        self, store: dist.Store, rank: int, size: int, *, every: float = EVERY, silent: float = SILENT,
        grace: float = GRACE, end: Callable[[int], None] = os._exit, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.failure: str | None = None
        self.passed, self._size = 0, size
        # Failures that all ranks have heard of are past; each has a key of its own in the store.
        self._settled, self._lock = 0, threading.Lock()
        self._store, self._rank, self._next = store, rank, (rank + 1) % size
        self._every, self._silent, self._grace, self._end, self._clock = every, silent, grace, end, clock
        self._beat, self._seen, self._seen_at, self._failed_at = 0, "", clock(), 0.0
        self._mine = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)

    def begin(self) -> None:
        """Start to watch."""
        self._thread.start()

    def tell(self, failure: str) -> None:
        """Let the others know; the first one told stands."""
        if self.failure is None:
            try:
                # Kept for good: another one was faster where it differs.
                self._store.compare_set(self._key(), "", failure)
            except (RuntimeError, OSError):
                return

    def settle(self) -> None:
        """All ranks have agreed on what had failed, and go on, or leave together."""
        with self._lock:
            self._settled += 1
            self.failure = None

    def behind(self) -> list[int]:
        """The other ranks that have exchanged fewer messages than this one, by their last beats."""
        late = []
        for rank in range(self._size):
            try:
                beat = self._store.get(f"beat/{rank}").decode().split() if self._store.check([f"beat/{rank}"]) else []
            except (RuntimeError, OSError):
                return []
            if rank != self._rank and len(beat) == 2 and int(beat[1]) < self.passed:
                late.append(rank)
        return late

    def close(self) -> None:
        """Say goodbye, and watch no longer."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)
        try:
            self._store.set(f"beat/{self._rank}", "done")
        except (RuntimeError, OSError):
            return

    def turn(self) -> None:
        """What is done once in a while."""
        with self._lock:
            try:
                self._beat += 1
                self._store.set(f"beat/{self._rank}", f"{self._beat} {self.passed}")
                self._look()
            except (RuntimeError, OSError):
                self._note(_LOST, mine=self._rank == 1)
        if self.failure is not None and self._clock() - self._failed_at > self._grace and not self._closed.is_set():
            if self._mine:
                print(f"pgraft-fast: {self.failure}", file=sys.stderr, flush=True)
            self._end(UNEXPECTED)

    def _look(self) -> None:
        if self._store.check([self._key()]):
            self._note(self._store.get(self._key()).decode())
            return
        if not self._store.check([f"beat/{self._next}"]):
            # It has not begun.
            self._seen_at = self._clock()
            return
        beat = self._store.get(f"beat/{self._next}").decode()
        if beat != self._seen or beat == "done":
            self._seen, self._seen_at = beat, self._clock()
        elif self._clock() - self._seen_at > self._silent:
            failure = f"rank {self._next} has given no sign of life for {self._silent:g} s: it was killed or hangs"
            self.tell(failure)
            self._note(failure, mine=True)

    def _key(self) -> str:
        return f"failed/{self._settled}"

    def _note(self, failure: str, mine: bool = False) -> None:
        if self.failure is None:
            self.failure, self._failed_at, self._mine = failure, self._clock(), mine

    def _watch(self) -> None:
        while not self._closed.wait(self._every):
            self.turn()


def store_of(address: str, port: int, prefix: str, seconds: float) -> dist.Store:
    """A connection of one's own to the store of the launcher, or of rank 0."""
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))
    return dist.PrefixStore(prefix, store)
