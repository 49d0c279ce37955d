"""One call of an accelerated pipeline: its loop is understood at the first step and then run outside of it.

The pipeline does everything else itself: prompts, first noise, decoding, safety checker. It is called as a view of
itself, in which the denoiser and the scheduler are views of our own, so that other threads and other pipelines with the
same parts see nothing of it, and nothing has to be undone. In its loop
- the denoiser's first call shows the model's arguments,
- the scheduler's first step shows what the pipeline makes of the output (guidance) and the options of the step.
If that is what `Trajectory` would have done, to rounding, the remaining steps run there, and the pipeline's loop has
nothing left to do. The next call of the same kind does not run the first step in the pipeline either. A call that
differs from what was understood runs again from its start, in the pipeline's own loop, from the same random state.
"""

import functools
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from pgraft_fast.integrations.bars import Bar, NoBar
from pgraft_fast.integrations.callback import PGraftCallback
from pgraft_fast.integrations.calls import IN_CALL
from pgraft_fast.integrations.shortcuts import shortcuts
from pgraft_fast.integrations.trajectory import Trajectory, model_state
from pgraft_fast.integrations.views import like, target_of, view
from pgraft_fast.schedulers.fused import FusedScheduler

if TYPE_CHECKING:
    from pgraft_fast.integrations.pipeline import State

_LOG = logging.getLogger(__name__)
_CALLBACKS = ("callback", "callback_on_step_end")


class NotAsUnderstoodError(Exception):
    """The loop did something else than in the call before."""


class Session:
    """One call of a pipeline: `with Session(...) as session`, then the call of `session.pipe`.

    pipe: the pipeline, or a view of it. bound: the call's arguments by their names.
    """

    def __init__(self, pipe: Any, state: "State", bound: dict[str, Any]) -> None:
        assert state.family is not None
        self._pipe, self._family, self._runner, self._bound = pipe, state.family, state.runner, bound
        self._known = state.known
        self._denoiser, self._scheduler = getattr(pipe, self._family.denoiser), target_of(pipe.scheduler)
        self._can_interrupt = hasattr(type(pipe), "interrupt")
        self._handover = handover_of(bound)
        self._mode = "look" if self._can_take_over() else "plain"
        self._calls = 0
        self._kind: tuple[Any, ...] = ()
        self._first: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._out: Any = None
        self._final: Any = None
        self._bar: Any = None
        self._rounds_left = 0
        self._undo = ExitStack()
        self.pipe, self._members = pipe, dict[str, Any]()
        if self._mode == "look":
            self._members = {
                IN_CALL: True,
                self._family.denoiser: view(self._denoiser, {"__call__": self._on_forward}),
                "scheduler": view(pipe.scheduler, {"step": like(self._scheduler.step, self._on_step)}),
                "progress_bar": self._on_progress_bar,
                **shortcuts(target_of(pipe), state.device),
            }
            if self._can_interrupt:
                self._members["interrupt"] = None
            self.pipe = view(pipe, self._members)
            self._members.pop("interrupt", None)

    def _can_take_over(self) -> bool:
        """Whether nothing in the arguments, the scheduler or the denoiser asks for the pipeline's own loop."""
        if not isinstance(self._scheduler, FusedScheduler) or self._scheduler.is_replaced():
            return False
        if getattr(self._denoiser, "is_cache_enabled", False):
            return False
        # A hook of the user's sees the arguments as the pipeline gives them.
        if getattr(self._denoiser, "_forward_hooks", None) or getattr(self._denoiser, "_forward_pre_hooks", None):
            return False
        asked = [name for name in (*_CALLBACKS, *self._family.refuses) if self._bound.get(name) is not None]
        return asked == [] or (asked == ["callback_on_step_end"] and self._handover is not None)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _leave(self) -> None:
        """The rest of the call is the pipeline's own; what it holds in variables goes on through us."""
        self._mode = "plain"
        self._give_back()

    def _give_back(self) -> None:
        """The pipeline has its own parts again: what it does with them after its loop, as offloading them, stays."""
        for name in (self._family.denoiser, "scheduler"):
            self._members.pop(name, None)

    def _on_forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._mode == "over":
            return self._known[self._kind]
        if self._mode == "look":
            self._calls += 1
            if torch.is_grad_enabled():
                self._leave()
        if self._mode != "look":
            return self._denoiser(*args, **kwargs)
        if self._calls == 1:
            self._first = (args, kwargs)
            self._kind = self._kind_of(args, kwargs)
        if self._kind in self._known:
            if self._calls > 1:
                raise NotAsUnderstoodError
            return self._known[self._kind]
        self._out = self._denoiser(*args, **kwargs)
        return self._out

    def _on_step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        as_dict = kwargs.get("return_dict", True)
        if self._mode == "over":
            self._rounds_left -= 1
            if self._rounds_left <= 0:
                self._give_back()
            return _as_asked(self._final, as_dict)
        if self._mode != "look":
            return self._scheduler.step(model_output, timestep, sample, *args, **kwargs)
        trajectory = self._trajectory(sample, kwargs)
        deferred = self._kind in self._known
        if not deferred and (args or not self._understood(trajectory, model_output, timestep, sample)):
            self._leave()
            _LOG.info("%s: this call runs in its own loop", type(self._pipe).__name__)
            return self._scheduler.step(model_output, timestep, sample, *args, **kwargs)
        x, first = sample, 0
        if not deferred:
            self._known[self._kind] = _blank(self._out)
            done = self._scheduler.step(model_output, timestep, sample, **kwargs)
            x, first = (done.prev_sample if as_dict else done[0]), 1
        if deferred or not trajectory.ends():
            x = self._take_over(trajectory, x, first)
        self._final, self._mode, self._rounds_left = x, "over", trajectory.last - 1
        if self._can_interrupt:
            # The loops that know `interrupt` skip their remaining rounds.
            self._members["interrupt"] = True
            self._give_back()
        return _as_asked(x, as_dict)

    def _take_over(self, trajectory: Trajectory, x: Tensor, first: int) -> Tensor:
        if self._handover is None:
            return self._runner.run(trajectory, x, first, trajectory.last)
        pipe, handover = target_of(self._pipe), self._handover
        # The pipeline calls it once more, after its first step.
        self._undo.enter_context(handover.inside(pipe))
        step = handover.step_of(pipe)
        return self._runner.run_handover(trajectory, x, first, step, lambda: handover.switch(pipe, False))

    def _understood(self, trajectory: Trajectory, given: Tensor, timestep: Any, x: Tensor) -> bool:
        """Whether the trajectory explains the first step."""
        out = None if self._out is None else self._out[0]
        return (
            self._calls == 1
            and trajectory.last > 1
            and isinstance(timestep, Tensor)
            and isinstance(out, Tensor)
            and trajectory.state() is not None
            and trajectory.explains(out, given, x, timestep)
        )

    def _trajectory(self, x: Tensor, kwargs: dict[str, Any]) -> Trajectory:
        args, first = self._first
        state = model_state(args, first)
        guided = state is not None and state.shape[0] == 2 * x.shape[0]
        return Trajectory(
            scheduler=self._scheduler,
            denoiser=self._denoiser,
            family=self._family,
            args=args,
            kwargs=first,
            guided=guided,
            learned=_channels(self._denoiser) == 2 * x.shape[1] and type(self._pipe).__name__ != "DDPMPipeline",
            guidance=float(self._bound.get("guidance_scale") or 1.0) if guided else 1.0,
            rescale=float(self._bound.get("guidance_rescale") or 0.0) if guided else 0.0,
            options={name: value for name, value in kwargs.items() if name != "return_dict"},
            last=self._steps(),
            dtype=x.dtype if state is None else state.dtype,
            ends=self._ends(),
        )

    def _steps(self) -> int:
        """The rounds of the pipeline's loop."""
        steps = getattr(self._pipe, "_num_timesteps", None) if hasattr(type(self._pipe), "num_timesteps") else None
        return len(self._scheduler.timesteps) if steps is None else steps

    def _ends(self) -> Callable[[], object]:
        """Called after each step: counts it on the bar; true once the user has interrupted the pipeline."""
        bar, pipe = self._bar, target_of(self._pipe)
        if bar is None:
            # One call of C, where the property would be two of Python.
            return functools.partial(vars(pipe).get, "_interrupt") if self._can_interrupt else lambda: False

        def ends() -> bool:
            bar.update()
            return self._can_interrupt and pipe.interrupt

        return ends

    def _kind_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """What must be equal for a call to be understood like another."""
        shapes = tuple((tuple(a.shape), a.dtype) if isinstance(a, Tensor) else type(a) for a in args)
        given = tuple(sorted((name, value is None, isinstance(value, Tensor)) for name, value in kwargs.items()))
        asked = tuple((name, value is None) for name, value in self._bound.items())
        switches = tuple((float(self._bound.get(name) or 0.0) > 1.0) for name in ("guidance_scale", "true_cfg_scale"))
        rescaled = bool(self._bound.get("guidance_rescale"))
        # PixArt reads another result of a single step.
        single = self._steps() == 1
        kinds = (
            weakref.ref(self._denoiser),
            type(self._scheduler),
            self._scheduler.config.get("prediction_type"),
            single,
        )
        return (*kinds, shapes, given, asked, switches, rescaled, kwargs.get("return_dict", True))

    def _on_progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        progress_bar = self._pipe.progress_bar
        own = getattr(progress_bar, "__func__", None) is DiffusionPipeline.progress_bar
        if own and getattr(self._pipe, "_progress_bar_config", {}).get("disable") is True:
            return NoBar() if iterable is None else self._rounds(list(iterable), NoBar())
        if iterable is None:
            self._bar = progress_bar(total=total)
            return Bar(self._bar, lambda: self._mode == "over")
        rounds = list(iterable)
        self._bar = progress_bar(total=len(rounds))
        return self._rounds(rounds, self._bar)

    def _rounds(self, rounds: list[Any], bar: Any) -> Iterator[Any]:
        with bar:
            for value in rounds:
                yield value
                if self._mode == "over":
                    return
                bar.update()


def handover_of(bound: dict[str, Any]) -> PGraftCallback | None:
    """The handover among the arguments of a call."""
    given = bound.get("callback_on_step_end")
    return given if isinstance(given, PGraftCallback) else None


def _channels(denoiser: Any) -> int | None:
    return getattr(getattr(denoiser, "config", None), "out_channels", None)


def _as_asked(x: Tensor, as_dict: bool) -> Any:
    return SchedulerOutput(prev_sample=x) if as_dict else (x,)


def _blank(out: Any) -> Any:
    """An output of the same kind that holds zeros."""
    zeros = torch.zeros_like(out[0])
    return (zeros,) if isinstance(out, (tuple, list)) else type(out)(zeros)
