"""Compaction of the kept rows of one or two tensors in one pass."""

import math

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.ops.backend import launcher
from pgraft_fast.ops.registration import register, traced


def gather_rows(index: Tensor, x: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """rows[i] = x[index[i]], zeros where index[i] < 0; the same for `other` (such as the states' prompts).

    index: (M,) int64 below n, e.g. of `reward_filter`; it is not checked against n, which would wait for the device.
    x, other: (n, ...) of any dtype. Returns (M, ...) tensors; no gradient flows. Raises InputError.
    """
    if index.ndim != 1 or index.dtype is not torch.int64:
        raise InputError(f"index is {index.dtype} {tuple(index.shape)}: (M,) int64 is needed")
    for name, value in (("x", x), ("other", other)):
        if value is not None and (value.ndim == 0 or value.shape[0] != x.shape[0] or value.device != index.device):
            raise InputError(
                f"{name} is {tuple(value.shape)} on {value.device}: ({x.shape[0] if x.ndim else 'n'}, ...) on "
                f"{index.device} is needed"
            )
    call = _op if traced(index, x, other) else _run
    rows, other_rows = call(index, x.detach(), None if other is None else other.detach())
    return rows, None if other is None else other_rows


def _run(index: Tensor, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
    launch = launcher("gather_rows", index)
    if launch is None or x.numel() == 0 or (other is not None and other.numel() == 0):
        return _reference(index, x), index.new_empty(0) if other is None else _reference(index, other)
    x = x.contiguous()
    rows = x.new_empty((index.shape[0], *x.shape[1:]))
    if other is None:
        launch(index.contiguous(), _bytes(x), None, _bytes(rows), None)
        return rows, index.new_empty(0)
    other = other.contiguous()
    other_rows = other.new_empty((index.shape[0], *other.shape[1:]))
    launch(index.contiguous(), _bytes(x), _bytes(other), _bytes(rows), _bytes(other_rows))
    return rows, other_rows


def _bytes(x: Tensor) -> Tensor:
    """(n, row bytes) uint8 of contiguous rows."""
    row = x.element_size() * math.prod(x.shape[1:])
    return x.view(-1).view(torch.uint8).view(x.shape[0], row)


def _reference(index: Tensor, x: Tensor) -> Tensor:
    if x.shape[0] == 0:
        return x.new_zeros((index.shape[0], *x.shape[1:]))
    rows = x[index.clamp(min=0)]
    absent = (index < 0).view(-1, *([1] * (x.ndim - 1)))
    return torch.where(absent, torch.zeros_like(rows), rows)


_op = register(
    "gather_rows(Tensor index, Tensor x, Tensor? other) -> (Tensor, Tensor)",
    _run,
    lambda index, x, other: (
        x.new_empty((index.shape[0], *x.shape[1:])),
        index.new_empty(0) if other is None else other.new_empty((index.shape[0], *other.shape[1:])),
    ),
)
