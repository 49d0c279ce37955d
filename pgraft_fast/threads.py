"""How many of torch's threads a piece of work takes on a CPU, and how they wait while it runs."""

import contextlib
import ctypes
import inspect
import math
import os
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn

from pgraft_fast import waiting

# Multiplications and additions of a network call. With less, a second thread costs what it brings: on two cores a
# multi-layer perceptron breaks even at 25 million, a convolutional network at 23, a small transformer above.
LEAST_SHARED = 2.5e7
# An element of the state is worth so many: passes over 100,000 of them break even, too.
_EACH_ELEMENT = 250.0
# Seconds between two looks, and the share of one thread's time that is lost in the queue for a core on a busy machine.
_LOOK_EVERY = 0.04
_BUSY = 0.4
_SHARED_ELEMENTS = 1 << 17
_one_at_a_time = threading.Lock()


class Team:
    """A context for a piece of work: small work takes one thread, other work all that the caller allows.

    work: of one network call, see `work_of`; None is not known. The number depends on it alone, so that results do not
    change with the load of the machine. While other processes keep the cores busy, threads that share work sleep where
    they wait, if nobody had said how to wait before torch was loaded. Afterwards all is as it was, for this thread and
    for new ones.
    Nothing happens where the work is not on a CPU or the caller has one thread. One thread at a time uses it.
    """

    def __init__(self, work: float | None, device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"
        self._small = work is not None and work < LEAST_SHARED
        self._before: tuple[int, int] | None = None
        self._watch: _Watch | None = None
        self._busy = threading.Event()

    def __enter__(self) -> Self:
        if self._on_cpu and torch.get_num_threads() > 1:
            if self._small:
                self._before = (torch.get_num_threads(), _set_here(1))
            elif _Watch.helps():
                self._watch = _Watch(self._busy)
        return self

    def __exit__(self, *raised: object) -> None:
        if self._before is not None:
            before, of_new_threads = self._before
            self._before = None
            torch.set_num_threads(before)
            if before != of_new_threads:
                _set_here(before, of_new_threads)
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def work_of(model: Any, rows: int, shape: Sequence[int]) -> float | None:
    """Of one call with (rows, *shape): at most so many multiplications and additions, attention's products left out.

        2 weights rows places + 250 rows elements

    with each weight used once at each place of the state at most. None where the weights cannot be told.
    """
    weights = _weights(model, set())
    if weights is None or rows < 1 or 0 in shape:
        return None
    elements = math.prod(shape)
    places = elements // min(shape, default=1)
    return rows * (2.0 * weights * places + _EACH_ELEMENT * elements)


def team_of(model: Any, rows: int, shape: Sequence[int], device: torch.device, *others: Any) -> Team:
    """For calls of a model, or of any of several; `work_of`. The largest decides, so that two on one network take as
    many threads as one.
    """
    works = [work_of(network, rows, shape) for network in (model, *others)]
    return Team(None if None in works else max(work for work in works if work is not None), device)


def _weights(model: Any, seen: set[int]) -> int | None:
    """Numbers that a model holds: a module, a function of modules and tensors, or what wraps one as `.model`."""
    if id(model) in seen:
        return 0
    seen.add(id(model))
    if isinstance(model, nn.Module):
        return sum(weight.numel() for weight in model.parameters())
    if isinstance(model, Tensor):
        return model.numel()
    if isinstance(model, BuiltinFunctionType | ModuleType | type | str | int | float | bool | None):
        return 0
    parts: list[Any]
    if isinstance(model, partial):
        parts = [model.func, *model.args, *model.keywords.values()]
    elif isinstance(model, FunctionType):
        if model.__module__.startswith("torch"):
            return 0
        try:
            used = inspect.getclosurevars(model)
        except ValueError:
            return None
        parts = [*used.nonlocals.values(), *used.globals.values()]
    elif inspect.ismethod(model) and isinstance(model.__self__, nn.Module):
        parts = [model.__self__]
    elif isinstance(model, list | tuple | set | dict):
        parts = list(model.values()) if isinstance(model, dict) else list(model)
    elif hasattr(model, "model"):
        parts = [model.model]
    else:
        return None
    counts = [_weights(part, seen) for part in parts]
    return None if None in counts else sum(count for count in counts if count is not None)


def _set_here(threads: int, of_new_threads: int | None = None) -> int:
    """torch.set_num_threads for this thread alone. Returns the number that new threads begin with, which stays, or
    becomes `of_new_threads`.

    torch sets both, and a thread that begins meanwhile would keep the wrong one for good; a new thread of ours finds
    what was there and sets it again.
    """
    initial: list[int] = []
    started, done = threading.Event(), threading.Event()

    def keep() -> None:
        initial.append(torch.get_num_threads())
        started.set()
        done.wait()
        torch.set_num_threads(initial[0] if of_new_threads is None else of_new_threads)

    with _one_at_a_time:
        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        started.wait()
        try:
            torch.set_num_threads(threads)
        finally:
            done.set()
            keeper.join()
    return initial[0]


class _Watch:
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
