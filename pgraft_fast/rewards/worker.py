"""A thread that runs calls one at a time, so that the caller can stop waiting."""

import contextlib
import ctypes
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
_POLL_SECONDS = 0.25
_GRACE_SECONDS = 2.0
_LAST_GRACE_SHARE, _LAST_GRACE_SECONDS = 0.1, (0.5, 5.0)
# While an exception waits for a thread within C, no function that is traced (by a debugger, by coverage) begins.
_STALLS_WHERE_TRACED = sys.version_info < (3, 12)


class HungError(Exception):
    """The call did not end in time. abandoned: its thread could not be ended and may still be running."""

    def __init__(self, abandoned: bool) -> None:
        super().__init__()
        self.abandoned = abandoned


class _EndCall(BaseException):
    """Raised in a thread whose call is given up."""


class _Task:
    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function
        self.done = threading.Event()
        self.result: object = None
        self.error: BaseException | None = None
        self.thread_id = 0

    def run(self) -> None:
        self.thread_id = threading.get_ident()
        try:
            with torch.no_grad():
                self.result = self.function()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


class Worker:
    """One daemon thread, started at the first call; a thread whose call hangs is left behind and a new one started.

    Gradients are off in it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: queue.SimpleQueue[_Task | None] | None = None

    def run(
        self,
        function: Callable[[], T],
        seconds: float,
        on_wait: Callable[[], None] = lambda: None,
        interrupt: Callable[[], None] | None = None,
    ) -> T:
        """function()'s result or exception. Raises HungError after `seconds`.

        on_wait() is called every quarter of a second and may raise. When a wait is given up, interrupt() is called,
        and an exception raised in the thread, which ends it where Python code runs, but not within a call of C, nor,
        before Python 3.12, where the process is traced.
        """
        task, deadline = _Task(function), time.monotonic() + seconds
        if self._tasks is None:
            self._tasks = queue.SimpleQueue()
            threading.Thread(target=_work, args=(self._tasks,), name=self.name, daemon=True).start()
        self._tasks.put(task)
        try:
            while not task.done.wait(max(0.0, min(_POLL_SECONDS, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    raise HungError(not self._give_up(task, interrupt, seconds))
                on_wait()
        except HungError:
            raise
        except BaseException:
            self._give_up(task, interrupt, 0.0)
            raise
        if task.error is not None:
            raise task.error
        return task.result  # type: ignore[return-value]

    def close(self) -> None:
        """Let the thread end after what it is doing."""
        if self._tasks is not None:
            self._tasks.put(None)
            self._tasks = None

    def _give_up(self, task: _Task, interrupt: Callable[[], None] | None, seconds: float) -> bool:
        """Whether the call has ended; else its thread is left behind."""
        if interrupt is not None:
            interrupt()
            if task.done.wait(_GRACE_SECONDS):
                return True
        self.close()
        # A thread left in a loop would take the device from the next try, and can abort the interpreter's exit.
        if not (_STALLS_WHERE_TRACED and sys.gettrace() is not None):
            thread = ctypes.c_ulong(task.thread_id)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_EndCall))
        low, high = _LAST_GRACE_SECONDS
        return task.done.wait(min(high, max(low, _LAST_GRACE_SHARE * seconds)))


def _work(tasks: "queue.SimpleQueue[_Task | None]") -> None:
    with contextlib.suppress(_EndCall):
        while (task := tasks.get()) is not None:
            task.run()
            del task
