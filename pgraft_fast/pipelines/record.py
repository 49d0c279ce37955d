"""One call of a pipeline, run as it is and written down."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.pipelines.standin import function_of, pipeline_with, scaled, stand_in, step_call, without_variance


@dataclass(frozen=True)
class Step:
    """x: the state as the denoiser sees it, (B, ...). out: the model's output. sample, next: the state as the scheduler
    has it, before and after. levels: (alpha, sigma) at this timestep, by all that the scheduler tells of it. x_0: what
    the step made, if that is told.
    """

    t: Tensor
    x: Tensor
    out: Tensor
    sample: Tensor
    next: Tensor
    levels: tuple[tuple[float, float], ...]
    x_0: Tensor | None = None


@dataclass
class Record:
    """steps: of the loop. media: what the call returned. nets: rows that each network of the loop was asked for in the
    first iteration, by its name. mu: of a dynamic shift, where the pipeline sets one.
    """

    steps: list[Step] = field(default_factory=list)
    nets: dict[str, int] = field(default_factory=dict)
    media: Any = None
    mu: float | None = None


@torch.no_grad()
def record(pipe: Any, call: dict[str, Any]) -> Record:
    """Call the pipeline. Its parts stay as they are, the scheduler's counters too. Raises what the pipeline raises."""
    own, recording = pipe.scheduler, Record()
    inside = False

    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        mu = kwargs.get("mu")
        recording.mu = recording.mu if mu is None else float(mu)
        result = type(own).set_timesteps(scheduler, *args, **kwargs)
        inside = True
        return result

    def step(*args: Any, **kwargs: Any) -> Any:
        inputs = step_call(own, args, kwargs)
        x = scaled(scheduler, inputs.sample, inputs.timestep)
        levels = (*_level_of_noise(scheduler, inputs.timestep, inputs.sample), *_level_of_scale(x, inputs.sample))
        result = type(own).step(scheduler, *args, **kwargs)
        if inputs.as_dict:
            after, x_0 = result.prev_sample, getattr(result, "pred_original_sample", None)
        else:
            after, x_0 = result[0], result[1] if len(result) == 2 else None
        tensors = (torch.as_tensor(inputs.timestep), x, without_variance(inputs.model_output, x), inputs.sample, after)
        t, x, out, sample, after = (value.detach().clone() for value in tensors)
        recording.steps.append(Step(t, x, out, sample, after, levels, None if x_0 is None else x_0.detach().clone()))
        return result

    def around(name: str, net: nn.Module) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if inside and not recording.steps:
                recording.nets[name] = recording.nets.get(name, 0) + _rows((*args, *kwargs.values()))
            return net(*args, **kwargs)

        return forward

    scheduler = stand_in(own, {"step": step, "set_timesteps": set_timesteps})
    recording.media = function_of(pipe)(pipeline_with(pipe, scheduler, around), **call)
    return recording


def _rows(values: Sequence[Any]) -> int:
    """Of the first argument that has some."""
    for value in values:
        if isinstance(value, Tensor) and value.ndim > 1:
            return value.shape[0]
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return len(value)
    return 1


def _level_of_noise(scheduler: Any, t: Any, sample: Tensor) -> list[tuple[float, float]]:
    """By which the scheduler itself mixes data and noise."""
    name = "scale_noise" if hasattr(scheduler, "scale_noise") else "add_noise"
    if not hasattr(scheduler, name):
        return []
    unit = torch.ones(1, 1, device=sample.device)
    time = torch.as_tensor(t, device=sample.device).reshape(-1)[:1]
    held = vars(scheduler).copy()

    def mixed(data: Tensor, noise: Tensor) -> float:
        order = (data, time, noise) if name == "scale_noise" else (data, noise, time)
        return float(getattr(scheduler, name)(*order))

    try:
        alpha, sigma = mixed(unit, 0.0 * unit), mixed(0.0 * unit, unit)
    except (AttributeError, NotImplementedError, IndexError, ValueError, RuntimeError):
        return []
    finally:
        vars(scheduler).clear()
        vars(scheduler).update(held)
    size = (alpha**2 + sigma**2) ** 0.5
    # Of schedulers whose states are x_0 + sigma noise, as the denoiser sees them.
    scaled_down = hasattr(scheduler, "scale_model_input") and alpha == 1.0
    return [(alpha / size, sigma / size) if scaled_down else (alpha, sigma)]


def _level_of_scale(seen: Tensor, sample: Tensor) -> list[tuple[float, float]]:
    """Where states are x_0 + sigma noise, they are divided by sqrt(1 + sigma^2) for the denoiser; else nothing."""
    alpha = float(seen.float().norm() / sample.float().norm().clamp(min=1e-12))
    return [(alpha, (1.0 - alpha**2) ** 0.5)] if alpha < 0.9999 else []
