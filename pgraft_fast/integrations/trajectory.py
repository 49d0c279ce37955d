"""The denoising loop of a pipeline, outside of the pipeline: model, guidance and solver step, nothing else."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.integrations.families import Family
from pgraft_fast.schedulers.fused import Guide, upload

_HOST_STATE = ("_step_index", "lower_order_nums", "model_outputs", "is_scale_input_called")

Call = Callable[[tuple[Any, ...], dict[str, Any]], Tensor]


@dataclass
class Trajectory:
    """What one call of a pipeline does between its first noise and its last state.

    args, kwargs: of the denoiser's first call; the state and the time in them are replaced at each step.
    guided: the model input holds every state twice, without and with the prompt. learned: the output's second half of
    channels is dropped. options: of scheduler.step. last: number of steps.
    dtype: of the model's input. times: the timesteps on the device of the states.
    """

    scheduler: Any
    denoiser: Any
    family: Family
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    guided: bool
    learned: bool
    guidance: float
    rescale: float
    options: dict[str, Any]
    last: int
    dtype: torch.dtype
    times: Tensor | None = None
    on_step: Callable[[], bool] = field(default=lambda: True)

    def run(self, x: Tensor, first: int, last: int, call: Call) -> Tensor:
        """States at step `last` from those at step `first`. on_step() after each step may end it."""
        # The scheduler knows its own timesteps; the model wants them on its device.
        timesteps = self.scheduler.timesteps
        own = timesteps[first:last].unbind()
        if self.times is None or self.times.device != x.device:
            self.times = upload(timesteps, x.device)
        times = own if self.times is timesteps else self.times[first:last].unbind()
        plan = self.scheduler.plan(first, last, x, self.options)
        stepper = None if plan is None else plan.bind(self.guidance, self.rescale, self.options.get("generator"))
        with torch.no_grad():
            for place, (t, t_model) in enumerate(zip(own, times, strict=True)):
                scale = None if plan is None or not plan.scaled else plan.steps[place].scale
                out, out_null = self.split(call(*self.arguments(self.model_input(x, t, scale), t_model)), x)
                if stepper is not None and out.dtype is not x.dtype:
                    # Seen at the first step only: a plan is for one dtype.
                    plan = stepper = None
                if stepper is None:
                    guide = None if out_null is None else Guide(out_null, self.guidance, self.rescale)
                    x = self.scheduler.advance(out, t, x, guide=guide, **self.options)[0]
                else:
                    x = stepper(place, x, out, out_null)
                if not self.on_step():
                    break
        if plan is not None:
            plan.steps = plan.steps[: place + 1]
            self.scheduler.planned_done(plan)
        return x

    def model_input(self, x: Tensor, t: Tensor, scale: float | None = None) -> Tensor:
        """What the denoiser is given for states x. scale: what they are divided by, where that is known."""
        if scale is not None:
            x = x / scale
        elif hasattr(self.scheduler, "scale_model_input"):
            x = self.scheduler.scale_model_input(x, t)
        if self.guided:
            x = torch.cat((x, x))
        return x if x.dtype is self.dtype else x.to(self.dtype)

    def arguments(self, x_in: Tensor, t: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The denoiser's arguments with another state and time."""
        time = self.family.time(t, x_in, self.denoiser)
        kwargs = {**self.kwargs, "return_dict": False}
        if not self.args:
            kwargs["sample" if "sample" in kwargs else "hidden_states"] = x_in
        if len(self.args) < 2:
            kwargs["timestep"] = time
            return (x_in, *self.args[1:])[: len(self.args)], kwargs
        return (x_in, time, *self.args[2:]), kwargs

    def state(self) -> Any:
        """The model input of the first call."""
        return model_state(self.args, self.kwargs)

    def time(self) -> Any:
        """The time argument of the first call."""
        return self.args[1] if len(self.args) > 1 else self.kwargs.get("timestep")

    def split(self, out: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the solver step takes from the model's output: with the prompt, and without it where guided."""
        if self.family.float_out:
            out = out.float()
        if self.learned:
            out = out[:, : x.shape[1]]
        if not self.guided:
            return out, None
        out_null, out = out.chunk(2)
        return out, out_null

    def explains(self, out: Tensor, given: Tensor, x: Tensor, t: Tensor) -> bool:
        """Whether this is how the pipeline came from x to the model's input and from `out` to what it gave `step`."""
        state, time = self.state(), self.time()
        expected = self.family.time(t.to(x.device), state, self.denoiser)
        if not isinstance(time, Tensor) or time.shape != expected.shape or not torch.equal(time.to(x.device), expected):
            return False
        if not torch.equal(self.model_input(x, t), state):
            return False
        mine, null = self.split(out, x)
        mine = mine if null is None else Guide(null, self.guidance, self.rescale).combine(mine)
        tight = 1e-5 if given.dtype is torch.float32 else 2e-2
        return mine.shape == given.shape and torch.allclose(mine.float(), given.float(), rtol=tight, atol=tight)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """The scheduler's counters are as before afterwards."""
        held = {name: copy.copy(getattr(self.scheduler, name)) for name in _HOST_STATE if hasattr(self.scheduler, name)}
        ended, self.on_step = self.on_step, lambda: True
        try:
            yield
        finally:
            self.on_step = ended
            for name, value in held.items():
                setattr(self.scheduler, name, value)


def model_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The state among the arguments of a denoiser."""
    return args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))


def call_module(module: Any) -> Call:
    """The plain call of a denoiser."""

    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return module(*args, **kwargs)[0]

    return call
