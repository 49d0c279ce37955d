"""Nested arguments and answers of networks: tensors in tuples, lists and dicts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def shapes_of(value: Any) -> Any:
    """Equal for values that differ in the numbers of their tensors alone."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype, value.device)
    if isinstance(value, dict):
        return tuple((name, shapes_of(part)) for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(shapes_of(part) for part in value)
    return value if isinstance(value, (bool, int, str, type(None))) else type(value)


def fresh(value: Any, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """In lists and dicts of its own, as some networks take out of them what they have used. change: of each tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: fresh(part, change) for name, part in value.items()}
    return type(value)(fresh(part, change) for part in value) if type(value) in (list, tuple) else value


def copied(value: Any) -> Any:
    """With tensors of its own, without a graph."""
    return fresh(value, lambda tensor: tensor.detach().clone())


def output_like(value: Any, made: Callable[[Tensor], Tensor]) -> Any:
    """An output of the same kind, with other tensors."""
    if isinstance(value, Tensor):
        return made(value)
    if isinstance(value, dict):
        return type(value)({name: output_like(part, made) for name, part in value.items()})
    return type(value)(output_like(part, made) for part in value) if isinstance(value, (list, tuple)) else value


def zeros_like(value: Any) -> Any:
    """An output of the same kind that holds zeros and no graph."""
    return output_like(value, lambda tensor: torch.zeros_like(tensor, requires_grad=False))


def same(a: Any, b: Any) -> bool:
    """Whether all is equal, bit for bit; objects that are neither numbers nor text must be the very same."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b.to(a.device))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(same(v, w) for v, w in zip(a, b, strict=True))
    return a is b or (type(a) is type(b) and isinstance(a, (bool, int, float, str)) and a == b)


def outline(value: Any) -> Any:
    """Equal for values that have the same parts: neither numbers nor sizes count."""
    if isinstance(value, Tensor):
        return value.ndim, value.dtype, value.device
    if isinstance(value, dict):
        return {name: outline(part) for name, part in value.items()}
    return tuple(outline(part) for part in value) if type(value) is tuple else type(value)
