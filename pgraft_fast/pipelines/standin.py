"""A pipeline whose scheduler and networks are ours for the length of a call: watched, or driven."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pgraft_fast.pipelines.bars import NoBar
from pgraft_fast.pipelines.shortcuts import shortcuts
from pgraft_fast.pipelines.views import view


class StepOutput(NamedTuple):
    """What `step` returns with return_dict=True; schedulers that tell a sample of x_0 as well tell the next state."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class Timesteps(Tensor):
    """A scheduler's own timesteps, whose iteration asks for each time when the loop wants it.

    Values, slices and copies are as of any tensor; slices and copies of equal length are iterated in the same way.
    """

    # Results of operations are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _times: Callable[[int], Tensor | None]
    _first: int

    @staticmethod
    def of(values: Tensor, times: Callable[[int], Tensor | None], first: int = 0) -> "Timesteps":
        """times(number): the time of the iteration with this number, None where the loop shall end. first: number of
        the first value.
        """
        timesteps = values.as_subclass(Tensor).as_subclass(Timesteps)
        timesteps._times, timesteps._first = times, first
        return timesteps

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        for place in range(len(self)):
            t = self._times(self._first + place)
            if t is None:
                return
            yield t

    def __getitem__(self, index: Any) -> Any:
        values = self.as_subclass(Tensor)[index]
        if isinstance(index, slice) and index.step in (None, 1):
            return Timesteps.of(values, self._times, self._first + range(len(self))[index].start)
        return values

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """See `Tensor.to`."""
        return Timesteps.of(self.as_subclass(Tensor).to(*args, **kwargs), self._times, self._first)


def stand_in(scheduler: Any, members: dict[str, Callable[..., Any]]) -> Any:
    """A copy of the scheduler, of the very same class, with functions of ours in the place of some of its methods.

    Nothing is set on the original. Of no effect are members that the scheduler does not have.
    """
    copied = copy.copy(scheduler)
    for name, function in members.items():
        if hasattr(scheduler, name):
            # Pipelines look at the signatures of `step` and of `set_timesteps`.
            vars(copied)[name] = functools.wraps(getattr(copied, name))(functools.partial(function))
    return copied


class StepCall(NamedTuple):
    """Arguments of a call of `scheduler.step`."""

    model_output: Tensor
    timestep: Any
    sample: Tensor
    as_dict: bool


@functools.lru_cache(maxsize=64)
def _signature(step: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(step)


def step_call(scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCall:
    """Arguments by name, as the scheduler's class has them."""
    bound = _signature(type(scheduler).step).bind(scheduler, *args, **kwargs).arguments
    model_output, sample = bound["model_output"], bound["sample"]
    return StepCall(model_output, bound.get("timestep"), sample, bound.get("return_dict", True) is not False)


def answer(x: Tensor, as_dict: bool) -> Any:
    """What `step` returns for the next state x."""
    output = StepOutput(x, x)
    return output if as_dict else tuple(output)


def scaled(scheduler: Any, x: Tensor, t: Any) -> Tensor:
    """A state of the scheduler as its denoiser sees it."""
    return type(scheduler).scale_model_input(scheduler, x, t) if hasattr(scheduler, "scale_model_input") else x


def without_variance(model_output: Tensor, x: Tensor) -> Tensor:
    """Without the channels of a learned variance."""
    if model_output.shape == x.shape or model_output.ndim < 2:
        return model_output
    return model_output[:, : x.shape[1]]


def function_of(pipe: Any) -> Callable[..., Any]:
    """The pipeline's own call, without the decorators that switch gradients off."""
    call = type(pipe).__call__
    return getattr(call, "__wrapped__", call)


def parameters_of(pipe: Any) -> frozenset[str]:
    """Names of the arguments of its call."""
    return frozenset(inspect.signature(function_of(pipe)).parameters)


def pipeline_with(
    pipe: Any, scheduler: Any, around: Callable[[str, nn.Module], Callable[..., Any]],
    nets: dict[str, nn.Module] | None = None,
) -> Any:  # fmt: skip
    """A copy of the pipeline with the same parts but for the scheduler; what a call sets on it stays there.

    around(name, network): what a call of the network does. nets: networks in the place of its own, by name.
    """
    copied = object.__new__(type(pipe))
    parts = copied.__dict__
    parts.update(vars(pipe))
    parts["scheduler"], parts["progress_bar"] = scheduler, _no_bar
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            net = (nets or {}).get(name, part)
            parts[name] = view(net, {"__call__": around(name, net)})
    return view(copied, shortcuts(pipe))


def _no_bar(iterable: Any = None, total: int | None = None) -> Any:
    return NoBar() if iterable is None else iterable
