"""`solver_step` by pointers in loops of many small steps.

All is laid out before the first step, memory for several small states at once, and a step passes three numbers.
"""

import ctypes
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.ops.backend import runs_cpp
from pgraft_fast.ops.pointers import TYPES, SolverStepArguments, library
from pgraft_fast.ops.solver_step import COLUMNS

# States are laid out in blocks of about so many bytes: one alone where it is larger.
_BLOCK = 1 << 18


class DirectSteps:
    """Steps without history, each from the state that the one before made: `step(row, x, out)` -> x_s.

    x: (B, ...), the first state. out: like the model's outputs, (B, ...), or (2 B, ...) with out_null before out.
    table: (S, 8) float32. expected: steps, for which memory is laid out. options: those of `solver_step`. twice: x_in,
    the next model input, is x_s twice, (2 B, ...). Each state has memory of its own: who keeps one finds it unchanged.
    The caller asks `serve` first; rows that draw noise need `noise`.
    """

    def __init__(
        self,
        table: Tensor,
        x: Tensor,
        out: Tensor,
        *,
        expected: int,
        twice: bool = False,
        guidance: float = 1.0,
        guidance_rescale: float = 0.0,
        clip: float | None = None,
        dynamic_ratio: float | None = None,
        dynamic_limit: float = 1.0,
    ) -> None:
        if twice:
            table = _keeping(table)
        batch = x.shape[0]
        self.x, self.x_in = x, x
        self._table, self._run = table, library().step_at
        self._out_shape, self._out_dtype = out.shape, out.dtype
        self._half = out.nbytes // 2 if out.shape[0] == 2 * batch else 0
        self._block: Any = SolverStepArguments(
            x=x.data_ptr(), row=table.data_ptr(), x_type=TYPES[x.dtype], out_type=TYPES[out.dtype], batch=batch,
            size=x.numel() // max(1, batch), guidance=guidance, rescale=guidance_rescale, clip=clip or 0.0,
            ratio=dynamic_ratio or 0.0, limit=dynamic_limit,
        )  # fmt: skip
        self._place, self._twice, self._expected = ctypes.addressof(self._block), twice, expected
        self._targets = self._memory()

    @staticmethod
    def serve(x: Tensor, out: Tensor, table: Tensor) -> bool:
        """Whether steps on such states can be made here: contiguous, on the CPU, and nobody records operations."""
        if not all(map(_plain, (x, out, table))):
            return False
        if x.dtype not in TYPES or out.dtype not in TYPES or table.dtype is not torch.float32 or x.ndim == 0:
            return False
        shapes = out.shape[1:] == x.shape[1:] and out.shape[0] in (x.shape[0], 2 * x.shape[0])
        recorded = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
        return shapes and not recorded and runs_cpp("solver_step", x)

    def step(self, row: int, x: Tensor, out: Tensor, noise: Tensor | None = None) -> Tensor | None:
        """x_s; None, and nothing is done, where x is not the last x_s or out or noise is not like the first."""
        if x is not self.x or out.shape != self._out_shape or out.dtype is not self._out_dtype or not _plain(out):
            return None
        if noise is not None and (noise.shape != x.shape or noise.dtype not in TYPES or not _plain(noise)):
            return None
        block, (at, x_s, x_in) = self._block, next(self._targets)
        block.x_s = at
        if self._twice:
            block.x_cut = at + x.nbytes
        block.noise = None if noise is None else noise.data_ptr()
        if noise is not None:
            block.noise_type = TYPES[noise.dtype]
        self._run(self._place, row, out.data_ptr(), self._half)
        # The next step reads what this one wrote.
        block.x = at
        self.x, self.x_in = x_s, x_in
        return x_s

    def _memory(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Address, state and model input of each step to come."""
        batch, *shape = self.x.shape
        size = (1 + self._twice) * self.x.nbytes
        most, left = max(1, _BLOCK // max(1, size)), self._expected
        while True:
            count = max(1, min(left, most))
            left -= count
            memory = torch.empty((count, (1 + self._twice) * batch, *shape), dtype=self.x.dtype)
            inputs = memory.unbind()
            states = memory[:, :batch].unbind() if self._twice else inputs
            for index in range(count):
                yield memory.data_ptr() + index * size, states[index], inputs[index]


@functools.lru_cache(maxsize=16)
def _keeping(table: Tensor) -> Tensor:
    """The table with a state to keep at every step: the second copy goes where that of a cut would."""
    table = table.clone()
    table[:, COLUMNS.index("keep")] = 1.0
    return table


def _plain(value: Tensor) -> bool:
    return type(value) is Tensor and value.is_cpu and value.is_contiguous()
