"""Steps of a trajectory by a scheduler that has no fast version."""

import functools
import inspect
from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from pgraft_fast.pipelines.standin import scaled
from pgraft_fast.sampling.guidance import Guide
from pgraft_fast.schedulers.fused import FusedScheduler, Times
from pgraft_fast.schedulers.methods import Methods

_ARGUMENTS = ["self", "model_output", "timestep", "sample"]


class OwnSteps:
    """A scheduler of diffusers as trajectories use it: as a `FusedScheduler`, but each step is its own `step`.

    In such steps values may be read back to the host, so that they are not captured in graphs.
    """

    captures = False

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    @staticmethod
    def serves(scheduler: Any) -> bool:
        """Whether it is a scheduler of diffusers with all of its own methods, and its step takes what most take."""
        cls: Any = type(scheduler)
        return _is_usual(cls) and not _methods(cls).replaced(scheduler, cls)

    @property
    def timesteps(self) -> Tensor:
        """Of the scheduler."""
        return self._scheduler.timesteps

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the scheduler."""
        return vars(self._scheduler)

    def times(self) -> Times:
        """The timesteps on the host."""
        host = self.timesteps.cpu()
        return Times(self.timesteps, 0, host, host.tolist())

    def scale_model_input(self, x: Tensor, timestep: Any) -> Tensor:
        """States as the denoiser sees them."""
        return scaled(self._scheduler, x, timestep)

    def plan(self, first: int, last: int, x: Tensor, options: dict[str, Any]) -> None:
        """None: each step needs `advance`."""

    def advance(
        self, out: Tensor, timestep: Any, x: Tensor, *, guide: Guide | None = None, **options: Any
    ) -> tuple[Tensor]:
        """One step: (x_s,). options: those of `step`. guide: guidance before it."""
        out = out if guide is None else guide.combine(out)
        return (self._scheduler.step(out, timestep, x, **options, return_dict=False)[0],)


def steps_of(scheduler: Any) -> Any:
    """What makes the steps of a trajectory: a fast scheduler itself, `OwnSteps` of another of diffusers; else None."""
    if isinstance(scheduler, FusedScheduler):
        return None if scheduler.is_replaced() else scheduler
    return OwnSteps(scheduler) if OwnSteps.serves(scheduler) else None


def after_step(done: Any) -> Any:
    """The next state, of what `scheduler.step` returned."""
    return done[0] if isinstance(done, tuple) else done.prev_sample


def as_asked(x: Tensor, as_dict: bool) -> Any:
    """What `scheduler.step` returns for the next state x."""
    return SchedulerOutput(prev_sample=x) if as_dict else (x,)


@functools.cache
def _is_usual(cls: Any) -> bool:
    if cls.__module__.partition(".")[0] != "diffusers" or not callable(getattr(cls, "step", None)):
        return False
    return list(inspect.signature(cls.step).parameters)[: len(_ARGUMENTS)] == _ARGUMENTS


@functools.cache
def _methods(cls: type) -> Methods:
    return Methods(cls, cls)
