"""The denoising loop of a pipeline, outside of the pipeline: model, guidance and solver step, nothing else."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from pgraft_fast.integrations.families import Family
from pgraft_fast.schedulers.fused import Guide, upload
from pgraft_fast.schedulers.plan import StepPlan

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
    ends: Callable[[], object] = field(default=lambda: False)

    def run(self, x: Tensor, first: int, last: int, call: Call) -> Tensor:
        """States at step `last` from those at step `first`. ends() after each step, if true, ends it."""
        # The scheduler knows its own timesteps; the model wants them on its device.
        timesteps = self.scheduler.timesteps
        own = timesteps[first:last].unbind()
        if self.times is None or self.times.device != x.device:
            self.times = upload(timesteps, x.device)
        times = own if self.times is timesteps else self.times[first:last].unbind()
        like = x.new_empty((1,), dtype=self.dtype).expand((1 + self.guided) * x.shape[0])
        arguments = _Arguments(self.args, self.kwargs, [self.family.time(t, like, self.denoiser) for t in times])
        plan = self.scheduler.plan(first, last, x, self.options)
        with torch.no_grad():
            if plan is None:
                return self._one_by_one(x, own, arguments, call)
            return self._planned(plan, x, own, arguments, call)

    def _one_by_one(self, x: Tensor, own: Sequence[Tensor], arguments: "_Arguments", call: Call) -> Tensor:
        for place, t in enumerate(own):
            out, out_null = self.split(call(*arguments(place, self.model_input(x, t))), x)
            x = self._advance(out, out_null, t, x)
            if self.ends():
                break
        return x

    def _advance(self, out: Tensor, out_null: Tensor | None, t: Tensor, x: Tensor) -> Tensor:
        guide = None if out_null is None else Guide(out_null, self.guidance, self.rescale)
        return self.scheduler.advance(out, t, x, guide=guide, **self.options)[0]

    def _planned(self, plan: StepPlan, x: Tensor, own: Sequence[Tensor], arguments: "_Arguments", call: Call) -> Tensor:
        """The loop without the scheduler; what a step writes is the next model input, where nothing is in between.

        A model call leaves no cache warm: each function that the loop touches costs a microsecond or two.
        """
        kept = x.dtype is self.dtype and not plan.scaled
        halves = self.guided and not (self.learned or self.family.float_out)
        stepper = plan.bind(self.guidance, self.rescale, self.options.get("generator"), twice=kept and self.guided)
        direct, rows, ends = None, [step.row for step in plan.steps], self.ends
        module = call.function if isinstance(call, ModuleCall) and arguments.positional else None
        times, rest, kwargs = arguments.times, arguments.rest, arguments.kwargs
        x_in, place = None, 0
        for place in range(len(rows)):
            if x_in is None:
                x_in = self.model_input(x, own[place], plan.steps[place].scale if plan.scaled else None)
            out = call(*arguments(place, x_in)) if module is None else module(x_in, times[place], *rest, **kwargs)[0]
            moved: Tensor | None = None if direct is None else direct.step(rows[place], x, out)
            if direct is None or moved is None:
                if place == 0 and (torch.float32 if self.family.float_out else out.dtype) is not x.dtype:
                    # A plan is for one dtype.
                    x = self._advance(*self.split(out, x), own[0], x)
                    return x if ends() else self._one_by_one(x, own[1:], arguments.after(1), call)
                x = stepper(place, x, out, halves=True) if halves else stepper(place, x, *self.split(out, x))
                x_in = None if not kept else stepper.doubled if self.guided else x
                direct = stepper.direct if halves or not (self.guided or self.learned) else None
            else:
                x, x_in = moved, direct.x_in if kept else None
            if ends():
                break
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
        ends, self.ends = self.ends, lambda: False
        try:
            yield
        finally:
            self.ends = ends
            for name, value in held.items():
                setattr(self.scheduler, name, value)


class _Arguments:
    """The denoiser's arguments with another state and time at each step: `arguments(place, x_in)`.

    positional: state and time come first, then `rest` and `kwargs`, which stay.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], times: Sequence[Tensor]) -> None:
        self.times, self.rest, self.positional = times, args[2:], len(args) > 1
        self.kwargs = {**kwargs, "return_dict": False}
        self._state = None if args else "sample" if "sample" in kwargs else "hidden_states"

    def __call__(self, place: int, x_in: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        time = self.times[place]
        if self.positional:
            return (x_in, time, *self.rest), self.kwargs
        if self._state is None:
            return (x_in,), {**self.kwargs, "timestep": time}
        return (), {**self.kwargs, "timestep": time, self._state: x_in}

    def after(self, place: int) -> "_Arguments":
        """From a later step on."""
        other = copy.copy(self)
        other.times = self.times[place:]
        return other


def model_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The state among the arguments of a denoiser."""
    return args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))


class ModuleCall:
    """The plain call of a denoiser."""

    def __init__(self, module: Any) -> None:
        plain = type(module).__call__ is nn.Module.__call__ and module._compiled_call_impl is None
        # What torch's call does where there is a hook is left to it.
        own = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        hooked = any(getattr(module, name) for name in own) or _has_any_global_hook()
        self.function = module.forward if plain and not hooked else module

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return self.function(*args, **kwargs)[0]
