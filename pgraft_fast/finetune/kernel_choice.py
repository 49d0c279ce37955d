"""Which of torch's kernels a run uses: none for gradients that cannot be trusted, and in a deterministic run none that
adds up in an order of its own.

cuDNN's attention is left out. On Hopper torch takes it for 16 bits. Its backward pass reads memory that nobody has
written where all scores of a query are far below 0: a tiny Flux in bfloat16 on an H200, torch 2.11, had gradients that
are not finite in 27 of 27 runs, others in each call, and in none of 672 steps with flash or plain attention
(https://github.com/pytorch/pytorch/issues/196678). What samples keeps it.

On CUDA convolutions, and the backward passes of attention and others, may add up in another order each time, unless
torch is told not to: a small UNet's LoRA on an H200 had other last bits after three rounds on two ranks than on one.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.backends import cuda, cudnn

from pgraft_fast.errors import InputError

_WITHOUT_ONE = "deterministic implementation"
# Without one of these torch refuses products in a deterministic run.
_CUBLAS, _WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
_FILLING: Any = torch.utils.deterministic


class _Switches:
    """Of the whole process, which has one set: changed while anybody is inside, then as the first found them."""

    def __init__(self, read: Callable[[], object], change: Callable[[], None], restore: Callable[..., None]) -> None:
        self._read, self._change, self._restore = read, change, restore
        self._lock = threading.Lock()
        self._inside: list[object] = []

    @contextmanager
    def changed(self) -> Iterator[None]:
        """While this is open, in any thread."""
        with self._lock:
            self._inside.append(self._read())
            self._change()
        try:
            yield
        finally:
            with self._lock:
                before = self._inside[0]
                self._inside.pop()
                if not self._inside:
                    self._restore(before)


def _leave_out_cudnn_attention() -> None:
    # Unless it alone is allowed.
    if cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.math_sdp_enabled():
        cuda.enable_cudnn_sdp(False)


def _determinism() -> tuple[bool, bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark, _FILLING.fill_uninitialized_memory,
    )  # fmt: skip


def _set_determinism(values: tuple[bool, bool, bool, bool]) -> None:
    on, warns, cudnn.benchmark, _FILLING.fill_uninitialized_memory = values
    torch.use_deterministic_algorithms(on, warn_only=warns)


_ATTENTION = _Switches(cuda.cudnn_sdp_enabled, _leave_out_cudnn_attention, cuda.enable_cudnn_sdp)
# Memory that is written before it is read need not be filled.
_DETERMINISM = _Switches(_determinism, lambda: _set_determinism((True, False, False, False)), _set_determinism)


def _set_convolutions(deterministic: bool) -> None:
    cudnn.deterministic = deterministic


_CONVOLUTIONS = _Switches(lambda: cudnn.deterministic, lambda: _set_convolutions(True), _set_convolutions)


def _ordered(device: torch.device, deterministic: bool) -> bool:
    """Whether kernels must have an order; a CPU's have one."""
    if not deterministic or device.type != "cuda":
        return False
    os.environ.setdefault(_CUBLAS, _WORKSPACE)
    return True


@contextmanager
def round_kernels(device: torch.device, deterministic: bool) -> Iterator[None]:
    """Of all that a round does. Rewards are others' code, and may use what has no deterministic kernel."""
    with _CONVOLUTIONS.changed() if _ordered(device, deterministic) else nullcontext():
        yield


@contextmanager
def training_kernels(device: torch.device, deterministic: bool = False) -> Iterator[None]:
    """Where gradients are made. deterministic: the same bits in every run; a CPU does that as it is.

    Raises InputError where an operation has no deterministic kernel.
    """
    ordered = _ordered(device, deterministic)
    with _ATTENTION.changed(), _DETERMINISM.changed() if ordered else nullcontext():
        try:
            yield
        except RuntimeError as error:
            if not ordered or _WITHOUT_ONE not in str(error):
                raise
            what = " ".join(str(error).split(_WITHOUT_ONE)[0].split())
            raise InputError(f"deterministic = true: {what} {_WITHOUT_ONE} on CUDA; leave deterministic out") from error
