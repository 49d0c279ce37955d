"""A batch in parts, each worked on by a thread of its own.

Threads that share every operation wait for each other at each one; on a busy machine nearly always one of them has no
core. With a part of the samples each they wait once, at the end.
"""

import contextvars
import math
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook

from pgraft_fast.threads.number import threads_here
from pgraft_fast.threads.work import LEAST_SHARED

T = TypeVar("T")
# All parts share one interpreter: p of them take 1 / p of a call's work, but p times its share of Python, and the
# larger of the two is least at the root of work / share. On two cores the digits' transformer breaks even at two parts
# of 50 samples.
_INTERPRETER = 25.0 * LEAST_SHARED


class PartStoppedError(Exception):
    """Another part of the batch has failed."""


def number_of_parts(work: float, threads: int) -> int:
    """In how many parts a batch goes. work: of a network call on all of its rows, see `work_of`."""
    return max(1, min(threads, int(math.sqrt(work / _INTERPRETER))))


def is_thread_safe(model: Any) -> bool:
    """Whether several threads may call a model at once: it says so by `thread_safe`, nobody hooked it, and each module
    in it is torch's or defined beside one that says so.
    """
    if not getattr(model, "thread_safe", False):
        return False
    if not isinstance(model, nn.Module):
        return is_thread_safe(getattr(model, "model", None))
    # A compiled one takes its attributes from the module in it.
    if hasattr(model, "_orig_mod") or has_any_global_hook():
        return False
    parts = list(model.modules())
    known = {type(part).__module__ for part in parts if getattr(part, "thread_safe", False)}
    return not any(
        part._forward_hooks
        or part._forward_pre_hooks
        or "forward" in vars(part)
        or not (type(part).__module__ in known or type(part).__module__.startswith("torch.nn."))
        for part in parts
    )


def has_modes() -> bool:
    """Whether this thread computes in a way that new ones know nothing of: a mode of torch, autocast, a profiler."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch.is_autocast_enabled("cpu")
        or torch.is_inference_mode_enabled()
        or torch.autograd._profiler_enabled()
    )


def in_parts(batch: slice, number: int, threads: int, function: Callable[[slice], T], stop: threading.Event) -> list[T]:
    """function(rows) of each of `number` parts of a batch, in the order of the rows. This thread takes the first.

    threads: of torch, for each part. stop: set where a part fails, for the others to raise `PartStoppedError`. What
    failed first in the order of the rows is raised here, once no part runs any more.
    """
    size = batch.stop - batch.start
    bounds = [batch.start + size * place // number for place in range(number + 1)]
    parts = [slice(low, high) for low, high in pairwise(bounds)]
    results: dict[int, T] = {}
    failed: dict[int, BaseException] = {}
    gradients = torch.is_grad_enabled()
    # Not by `join`: until Python 3.13 one that Ctrl-C interrupts takes the thread for ended.
    ended = [threading.Event() for _ in parts]

    def work(place: int) -> None:
        try:
            with threads_here(threads), torch.set_grad_enabled(gradients):
                results[place] = function(parts[place])
        except BaseException as error:
            failed[place] = error
            stop.set()
        finally:
            ended[place].set()

    others = [
        threading.Thread(
            target=contextvars.copy_context().run, args=(work, place), name="pgraft-fast-part", daemon=True
        )
        for place in range(1, number)
    ]
    try:
        for thread in others:
            thread.start()
        work(0)
        for end in ended:
            end.wait()
    except BaseException:
        stop.set()
        for thread, end in zip(others, ended[1:], strict=True):
            if thread.ident is not None:
                end.wait()
        raise
    finally:
        for thread in others:
            if thread.ident is not None:
                thread.join()
    for place in sorted(failed):
        if not isinstance(failed[place], PartStoppedError):
            raise failed[place]
    return [results[place] for place in range(number)]
