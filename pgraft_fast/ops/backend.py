"""Which implementation of the operations runs: reference (eager torch), cpp (CPU) or triton (GPU).

Chosen by the device of the tensors: cpp on a CPU, triton on a GPU, the reference where neither can be had or
elsewhere. `use_backend(name)` or the environment variable PGRAFT_FAST_BACKEND forces one; a forced one that is missing
raises BackendError. float64 is always the reference's: it is what the others are held to.
"""

import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.errors import BackendError, InputError

BACKENDS = ("reference", "cpp", "triton")

Launcher = Callable[..., Any]


def _check(name: str | None, source: str) -> str | None:
    if name is not None and name not in BACKENDS:
        raise InputError(f"{source}={name!r} is unknown; known: {', '.join(BACKENDS)}")
    return name


_forced = _check(os.environ.get("PGRAFT_FAST_BACKEND") or None, "PGRAFT_FAST_BACKEND")


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force a backend inside a `with`: "reference", "cpp", "triton", or None for the choice by device.

    Raises InputError for an unknown name; operations inside raise BackendError where the backend cannot run.
    """
    global _forced  # noqa: PLW0603
    before, _forced = _forced, _check(name, "backend")
    try:
        yield
    finally:
        _forced = before


def launcher(op: str, x: Tensor) -> Launcher | None:
    """The function that runs `op` on tensors like x with outputs given, or None: the reference serves them."""
    if x.dtype is torch.float64:
        return None
    if _forced is None:
        return _by_device(op, _cpp_launcher) if x.is_cpu else _by_device(op, _triton_launcher) if x.is_cuda else None
    return None if _forced == "reference" else _forced_launcher(_forced, op, x.device.type)


@functools.cache
def _forced_launcher(name: str, op: str, device: str) -> Launcher:
    if name == "cpp":
        if device != "cpu":
            raise BackendError(f"backend 'cpp' runs on CPU tensors, got one on {device}")
        return _cpp_launcher(op)
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError(f"backend 'triton' runs on CUDA tensors (or with TRITON_INTERPRET=1), got one on {device}")
    return _triton_launcher(op)


@functools.cache
def _by_device(op: str, find: Callable[[str], Launcher]) -> Launcher | None:
    """The launcher, or None after one line that says why there is none."""
    try:
        return find(op)
    except BackendError as error:
        _say_once(f"pgraft_fast: {error}; the slower reference runs instead")
        return None


def _cpp_launcher(op: str) -> Launcher:
    library = _cpp_library()
    if op == "solver_step":
        from pgraft_fast.ops.pointers import launch

        return launch
    return getattr(library, op)


def runs_cpp(op: str, x: Tensor) -> bool:
    """Whether `launcher` gives the C++ of csrc for tensors like x."""
    return x.is_cpu and _forced != "triton" and launcher(op, x) is not None


@functools.cache
def _cpp_library() -> Any:
    from pgraft_fast.ops.extension import load

    return load()


# Where the name of an operation is not the name of its file.
_TRITON_HOME = {
    "philox_words": ("philox_normal", "philox_words_fwd"),
    "weighted_mse_grad": ("weighted_mse", "weighted_mse_bwd"),
}


@functools.cache
def _triton_launcher(op: str) -> Launcher:
    module, function = _TRITON_HOME.get(op, (op, f"{op}_fwd"))
    try:
        return getattr(importlib.import_module(f"pgraft_fast_kernels.{module}"), function)
    except ImportError as error:
        raise BackendError(f"backend 'triton' is missing ({error}): pip install triton") from error


@functools.cache
def _say_once(message: str) -> None:
    """One line; on stderr, unless the application configured logging."""
    logging.getLogger("pgraft_fast").warning(message)
