"""What a loop asks a model: the states to begin with, and an answer for the solver's step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pgraft_fast.diffusion import normal
from pgraft_fast.errors import InputError
from pgraft_fast.sampling.guidance import Guided, Model


def first_states(
    model: Model, seed: int, sample_id: Tensor, condition: Tensor | None, shape: Sequence[int], scale: float,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """(n, *shape): noise of this scale, or what the model has as initial_state(seed, sample_id, condition)."""
    own = getattr(model, "initial_state", None)
    states = None if own is None else own(seed, sample_id, condition)
    if states is None:
        return normal(seed, sample_id, 0, tuple(shape), dtype=dtype).mul_(scale)
    return states.to(dtype)


class Answer(NamedTuple):
    """What `solver_step` takes of a model."""

    out: Tensor
    out_null: Tensor | None
    scale: float


def answer_of(net: Model, x: Tensor, times: Tensor, condition: Tensor | None) -> Answer:
    """The model's answer, with guidance or without. times: (B,). Raises InputError where it has another shape."""
    output = net(x, times) if condition is None else net(x, times, condition)
    answer = Answer(*output) if isinstance(output, Guided) else Answer(output, None, 1.0)
    for out in answer[:1] if answer.out_null is None else answer[:2]:
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(f"the model returned {got} for a state of shape {tuple(x.shape)}")
    return answer
