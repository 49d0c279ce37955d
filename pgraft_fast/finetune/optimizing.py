"""What every training here does beside its loss: weights that follow in an average, moments that are saved."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

# At step 10 a new value counts half as much as the average.
_WARM_UP = 10


def follow(averages: Iterable[Tensor], values: Iterable[Tensor], decay: float) -> None:
    """average <- decay average + (1 - decay) value, in place."""
    written = list(averages)
    get_ema_multi_avg_fn(decay)(written, list(values), None)
    tell_written(written)


def tell_written(weights: Iterable[Tensor]) -> None:
    """Raise the versions of weights, by which what was made of them is known to be old.

    On CUDA torch's operations on lists, those of optimisers among them, write without that; on a CPU they do not.
    """
    torch.autograd.graph.increment_version(list(weights))


def warmed_up(decay: float, step: int) -> float:
    """The decay of step 0, 1, ...: less at first, when the average is that of the first weights."""
    return min(decay, step / (step + _WARM_UP))


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as tensors by name, "<number of the weight>.<moment>"."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, moments in state.items() for name, value in moments.items()}


def load_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Inverse of `moments_of`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
