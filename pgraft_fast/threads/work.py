"""How much work a network call is, from its weights and the shape of its states."""

import inspect
import math
from collections.abc import Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

# Multiplications and additions of a network call. With less, a second thread costs what it brings: on two cores a
# multi-layer perceptron breaks even at 25 million, a convolutional network at 23, a small transformer above.
LEAST_SHARED = 2.5e7
# An element of the state is worth so many: passes over 100,000 of them break even, too.
_EACH_ELEMENT = 250.0


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
