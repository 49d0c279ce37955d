"""A pipeline's own denoising loop as a function of states and times."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.rules import tensors_of
from pgraft_fast.pipelines.standin import (
    Timesteps,
    answer,
    function_of,
    pipeline_with,
    scaled,
    stand_in,
    step_call,
    without_variance,
)
from pgraft_fast.pipelines.trees import copied, shapes_of, zeros_like


class NotServedError(InputError):
    """A pipeline whose loop cannot be driven; the text says what was seen."""


@dataclass(frozen=True)
class NetCall:
    """One call of a network in an iteration; the tensors of its arguments are copied before it. writes: whether it
    wrote into them. empties: whether it changed the lists and dicts that they were in.
    """

    net: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    writes: bool = False
    empties: bool = False

    @classmethod
    def of(cls, name: str, net: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> "NetCall":
        """Call the network."""
        # Inference tensors count no writes.
        tensors = [tensor for tensor in tensors_of((args, kwargs)) if not tensor.is_inference()]
        before, written = (copied(args), copied(kwargs)), [tensor._version for tensor in tensors]
        out = net(*args, **kwargs)
        writes = written != [tensor._version for tensor in tensors]
        return cls(name, *before, out, writes, shapes_of(before) != shapes_of((args, kwargs)))


class Loop:
    """One call of a pipeline that waits at `scheduler.step` of each iteration for the state and the time of the next.

        loop = Loop(pipe, {"prompt": "a red cube", "guidance_scale": 5.0})
        out = loop.output(x, t)    # what the pipeline hands to scheduler.step for the state x at the timestep t
        media = loop.finish(x_0)   # what the call returns for the final state x_0

    The pipeline does all else itself: encoding, guidance, other networks, decoding. start: the state that it prepared,
    as its denoiser sees it, x has its shape; start_time: the timestep of it. levels: its scheduler's sigmas and
    timesteps. called: networks in the last iteration. Gradients flow into the output where they are enabled; the
    pipeline's own `no_grad` is left out. nets: used in the place of the pipeline's own, by name. blanks: outputs of
    networks by call, kept from loop to loop: the first iteration, whose output nobody asks for, takes zeros of their
    shapes. watch: told of each call of a network in the loop. A loop belongs to the thread that made it. Nothing is set
    on the pipeline, and no part of it is changed. Raises NotServedError, and what the pipeline does.
    """

    def __init__(
        self, pipe: Any, call: dict[str, Any], *, nets: dict[str, nn.Module] | None = None,
        blanks: dict[Any, Any] | None = None, watch: Callable[[NetCall], None] | None = None,
    ) -> None:  # fmt: skip
        self._watch = watch
        self._call, self._blanks = call, {} if blanks is None else blanks
        self._next: tuple[Tensor, Tensor | None] | None = None
        self._number = -1
        self.called: set[str] = set()
        self._waits, self._times = False, torch.empty(0)
        self.start_time: Tensor | None = None
        self.levels: tuple[Tensor | None, Tensor] = (None, self._times)
        self._pipe = self._driven(pipe, nets or {})
        self._function = function_of(pipe)
        self._loop = _coroutines().greenlet(self._run)
        with torch.no_grad():
            yielded = self._switch()
        if not isinstance(yielded, tuple):
            raise NotServedError(f"{type(pipe).__name__}: its call ends without a step of its scheduler")
        self.start: Tensor = yielded[1]

    @property
    def left(self) -> int:
        """How many more states can be asked for."""
        return 0 if self._loop.dead else len(self._times) - self._number - 1

    def output(self, x: Tensor, t: Tensor) -> Tensor:
        """The model's output for states x, of `start`'s shape, at a timestep t: a scalar."""
        self._next = (x, t)
        yielded = self._switch()
        if not isinstance(yielded, tuple):
            raise NotServedError(f"{type(self._pipe).__name__}: its loop ended before it was asked to")
        return yielded[0]

    @torch.no_grad()
    def finish(self, x: Tensor) -> Any:
        """What the call returns for final states x; the loop is over then."""
        self._next = (x, None)
        yielded = self._switch()
        if isinstance(yielded, tuple):
            self.close()
            raise NotServedError(f"{type(self._pipe).__name__}: its loop goes on after the last step")
        return yielded.result

    def close(self) -> None:
        """Leave the call where it is."""
        if not self._loop.dead:
            self._loop.throw(_coroutines().GreenletExit)

    def _driven(self, pipe: Any, nets: dict[str, nn.Module]) -> Any:
        members = {"step": self._step, "set_timesteps": self._set_timesteps, "scale_model_input": self._scale}
        self._scheduler = stand_in(pipe.scheduler, members)
        return pipeline_with(pipe, self._scheduler, self._counted, nets)

    def _run(self) -> Any:
        return _Ended(self._function(self._pipe, **self._call))

    def _switch(self) -> Any:
        grad = torch.is_grad_enabled()
        try:
            return self._loop.switch()
        finally:
            # What the call entered and did not leave yet is its own.
            torch.set_grad_enabled(grad)

    # In the call.

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> Any:
        scheduler = self._scheduler
        result = type(scheduler).set_timesteps(scheduler, *args, **kwargs)
        self._times = torch.as_tensor(scheduler.timesteps)
        self.levels = (getattr(scheduler, "sigmas", None), self._times)
        scheduler.timesteps = Timesteps.of(self._times, self._time)
        return result

    def _time(self, number: int) -> Tensor | None:
        if self._waits:
            raise NotServedError(f"{type(self._pipe).__name__}: its loop takes several times before a step")
        self._number = number
        if self._next is None:
            self.start_time = self._times[number]
        t = self._times[number] if self._next is None else self._next[1]
        self._waits = t is not None
        self.called.clear()
        return t

    def _scale(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # States that are asked for are as the denoiser sees them.
        if self._next is not None:
            return sample
        return scaled(self._scheduler, sample, *args, **kwargs)

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        inputs = step_call(self._scheduler, args, kwargs)
        if not self._waits:
            raise NotServedError(
                f"{type(self._pipe).__name__}: its loop makes several steps at one time, or takes times from elsewhere"
            )
        if not isinstance(inputs.model_output, Tensor) or not isinstance(inputs.sample, Tensor):
            raise NotServedError(f"{type(self._pipe).__name__}: its steps are not made of one tensor")
        self._waits = False
        x = inputs.sample
        if self._next is None:
            x = scaled(self._scheduler, x, inputs.timestep)
        self._loop.parent.switch((without_variance(inputs.model_output, x), x))
        assert self._next is not None
        return answer(self._next[0], inputs.as_dict)

    def _counted(self, name: str, net: nn.Module) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._waits:
                return net(*args, **kwargs)
            self.called.add(name)
            key = (name, shapes_of(args), shapes_of(kwargs))
            blank = copy.copy(self._blanks.get(key)) if self._next is None else None
            if self._watch is None:
                out = net(*args, **kwargs) if blank is None else blank
            else:
                if blank is None:
                    seen = NetCall.of(name, net, args, kwargs)
                else:
                    seen = NetCall(name, copied(args), copied(kwargs), blank)
                out = seen.out
                self._watch(seen)
            if self._next is None and blank is None:
                self._blanks[key] = zeros_like(out)
            return out

        return call


def _coroutines() -> Any:
    try:
        import greenlet
    except ImportError:
        raise InputError("a pipeline's loop is driven with greenlet: pip install 'pgraft-fast[text]'") from None
    return greenlet


class _Ended:
    """The end of a call."""

    def __init__(self, result: Any) -> None:
        self.result = result
