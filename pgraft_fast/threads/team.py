"""The threads of one piece of work: how many of torch's, and whether they share operations or samples."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

import torch

from pgraft_fast.threads.number import threads_here
from pgraft_fast.threads.parts import PartStoppedError, has_modes, in_parts, is_thread_safe, number_of_parts
from pgraft_fast.threads.watch import Watch
from pgraft_fast.threads.work import LEAST_SHARED, work_of

T = TypeVar("T")


class Team:
    """A context for a piece of work: small work takes one thread, other work all that the caller allows.

    work: of one network call, see `work_of`; None is not known. The number depends on it alone, so that results do not
    change with the load of the machine. While other processes keep the cores busy, threads that share work sleep where
    they wait, if nobody had said how to wait before torch was loaded. Afterwards all is as it was, for this thread and
    for new ones.
    work_of_row: of one row of a batch, where several threads may call the network at once, see `run`.
    Nothing happens where the work is not on a CPU or the caller has one thread. One thread at a time uses it.
    """

    def __init__(self, work: float | None, device: torch.device, work_of_row: float | None = None) -> None:
        self._on_cpu = device.type == "cpu"
        self._small = work is not None and work < LEAST_SHARED
        self._work_of_row = work_of_row
        self._entered = contextlib.ExitStack()
        self._busy, self._stop = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        if self._on_cpu and torch.get_num_threads() > 1:
            if self._small:
                self._entered.enter_context(threads_here(1))
            elif Watch.helps():
                self._entered.callback(Watch(self._busy).close)
        return self

    def __exit__(self, *raised: object) -> None:
        self._entered.close()

    def run(self, batch: slice, function: Callable[[slice], T]) -> list[T]:
        """function(rows) of a batch in the order of its rows: of all at once, or of parts with a thread for each.

        In parts where several threads may call the network and each has enough to do. The function uses nothing then
        that threads must not share, and calls `check` now and then.
        """
        threads, parts = torch.get_num_threads(), 1
        if self._on_cpu and self._work_of_row is not None and not has_modes():
            parts = number_of_parts(self._work_of_row * (batch.stop - batch.start), threads)
        if parts == 1:
            with self:
                return [function(batch)]
        self._stop.clear()
        with self if threads >= 2 * parts else contextlib.nullcontext():
            return in_parts(batch, parts, threads // parts, function, self._stop)

    def batches(self, count: int, size: int, function: Callable[[slice], T]) -> Iterator[tuple[int, list[T]]]:
        """`run` of rows 0 ... count - 1, at most `size` at once: how many rows, and what came of them."""
        for low in range(0, count, size):
            batch = slice(low, min(low + size, count))
            yield batch.stop - low, self.run(batch, function)

    def check(self) -> None:
        """Raises `PartStoppedError` where another part of the batch has failed."""
        if self._stop.is_set():
            raise PartStoppedError


def team_of(model: Any, rows: int, shape: Sequence[int], device: torch.device, *others: Any) -> Team:
    """For calls of a model, or of any of several; `work_of`. The largest decides, so that two on one network take as
    many threads as one.
    """
    models = (model, *others)
    works = [work_of(network, rows, shape) for network in models]
    work = None if None in works else max(work for work in works if work is not None)
    shared = work is not None and all(is_thread_safe(network) for network in models)
    return Team(work, device, work / rows if shared and work is not None else None)
