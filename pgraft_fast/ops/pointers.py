"""`solver_step` of csrc by plain pointers.

A call through torch's dispatcher with its twenty arguments costs more than a step on small states, and after a model
call, which leaves no cache warm, three times as much again. `launch` fills a block of arguments and passes that.
"""

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

_POINTERS = (
    "x", "out", "out_null", "previous", "noise", "x_s", "x_0", "x_cut", "log_prob", "sample_id", "row",
)  # fmt: skip
# DType of csrc/kernels.h.
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class SolverStepArguments(ctypes.Structure):
    """SolverStep of csrc/kernels.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int) for name in ("x_type", "out_type", "noise_type")),
        *((name, ctypes.c_int64) for name in ("batch", "size", "channels", "seed")),
        *((name, ctypes.c_float) for name in ("guidance", "rescale", "clip", "ratio", "limit")),
    )


def launch(
    x: Tensor, out: Tensor, out_null: Tensor | None, previous: Tensor | None, noise: Tensor | None, table: Tensor,
    step: Tensor, sample_id: Tensor | None, seed: int, guidance: float, rescale: float, clip: float, ratio: float,
    limit: float, batch: int, channels: int, x_s: Tensor, x_0: Tensor | None, x_cut: Tensor | None,
    log_prob: Tensor | None,
) -> None:  # fmt: skip
    """The launcher: arguments as for the operator in csrc."""
    if torch._C._len_torch_dispatch_stack() > 0:
        # Who records operations must see this one.
        library().op(
            x, out, out_null, previous, noise, table, step, sample_id, seed, guidance, rescale, clip, ratio, limit,
            batch, channels, x_s, x_0, x_cut, log_prob,
        )  # fmt: skip
        return
    block = SolverStepArguments(
        x.data_ptr(), out.data_ptr(), _at(out_null), _at(previous), _at(noise), x_s.data_ptr(), _at(x_0), _at(x_cut),
        _at(log_prob), _at(sample_id), table.data_ptr(), TYPES[x.dtype], TYPES[out.dtype],
        0 if noise is None else TYPES[noise.dtype], batch, x.numel() // max(1, batch), channels, seed, guidance,
        rescale, clip, ratio, limit,
    )  # fmt: skip
    library().step(ctypes.addressof(block), step.data_ptr())


def _at(value: Tensor | None) -> int | None:
    return None if value is None else value.data_ptr()


class _Library(NamedTuple):
    step: Any
    step_at: Any
    op: Any


@functools.cache
def library() -> _Library:
    """The functions of csrc, loaded once; their block of arguments must be laid out as this one."""
    from pgraft_fast.ops.extension import load, loaded

    op, cdll = load().solver_step, ctypes.CDLL(str(loaded()))
    size = cdll.pgraft_solver_step_bytes
    size.restype = ctypes.c_int64
    if size() != ctypes.sizeof(SolverStepArguments):
        raise AssertionError("SolverStepArguments differs from SolverStep of csrc/kernels.h")
    step, step_at = cdll.pgraft_solver_step, cdll.pgraft_solver_step_at
    step.argtypes, step.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    step_at.argtypes, step_at.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64], None
    return _Library(step, step_at, op)
