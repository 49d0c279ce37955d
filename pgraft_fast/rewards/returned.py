"""What a reward returned, as numbers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_numbers(values: Any) -> Tensor:
    """Float32 in the shape that was returned: a tensor, an array, or a sequence of numbers, of which None is nan.

    Raises ValueError: what it is instead, "list, not numbers: 'good' at place 2".
    """
    refused = ValueError(f"{type(values).__name__}, not numbers")
    if isinstance(values, Tensor):
        if values.is_complex():
            raise refused
        return values.detach().to(torch.float32)
    if isinstance(values, np.ma.MaskedArray):
        # None where it is masked.
        values = values.tolist()
    elif hasattr(values, "__array__"):
        array = np.asarray(values)
        if array.dtype.kind in "biuf":
            return torch.from_numpy(array.astype(np.float32))
        if array.dtype.kind != "O" or array.ndim != 1:
            raise refused
        values = list(array)
    if isinstance(values, int | float):
        return torch.tensor(_number(values, 0, refused))
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray | memoryview):
        raise refused
    if any(isinstance(value, Sequence) and not isinstance(value, str | bytes) for value in values):
        return _nested(values, refused)
    return torch.tensor([_number(value, place, refused) for place, value in enumerate(values)])


def _nested(values: Sequence[Any], refused: ValueError) -> Tensor:
    try:
        return torch.as_tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise refused from error


def _number(value: Any, place: int, refused: ValueError) -> float:
    """Of a Python or numpy number, or a tensor or array of one; inf for a whole number that no float holds."""
    if value is None or value is np.ma.masked:
        return math.nan
    try:
        if hasattr(value, "item"):
            value = value.item()
        if not hasattr(type(value), "__float__"):
            raise TypeError
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{refused}: {value!r} at place {place}") from error
