"""The denoising loop of a pipeline, outside of the pipeline: networks, guidance and solver step, nothing else."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from pgraft_fast.pipelines.accelerated.requests import Arguments, Request, States
from pgraft_fast.pipelines.rules import Explanation, Whole, answer_of, tensors_of
from pgraft_fast.pipelines.standin import scaled
from pgraft_fast.pipelines.trees import fresh
from pgraft_fast.sampling.guidance import Guide
from pgraft_fast.schedulers.fused import upload
from pgraft_fast.schedulers.plan import StepPlan

# What a call of each network does.
Functions = Mapping[str, Callable[..., Any]]


@dataclass
class Trajectory:
    """What one call of a pipeline does between its first noise and its last state.

    scheduler: see `steps.steps_of`. nets: by name. arguments: of each call in the first iteration; states and times in
    them are replaced at each step. options: of scheduler.step. first, last: steps of the scheduler. times: its
    timesteps on the states' device.
    """

    scheduler: Any
    nets: dict[str, Any]
    explanation: Explanation
    arguments: Sequence[Arguments]
    options: dict[str, Any]
    first: int
    last: int
    times: Tensor | None = None
    ends: Callable[[], object] = field(default=lambda: False)

    def run(self, x: Tensor, first: int, last: int, functions: Functions) -> Tensor:
        """States at step `last` from those at step `first`. ends() after each step, if true, ends it."""
        # The scheduler knows its own timesteps; the model wants them on its device.
        timesteps = self.scheduler.timesteps
        if self.times is None or self.times.device != x.device:
            self.times = upload(timesteps, x.device)
        times = self.times.narrow(0, first, last - first)
        pairs = zip(self.explanation.calls, self.arguments, strict=True)
        requests = [Request(rule, arguments, times) for rule, arguments in pairs]
        plan = self.scheduler.plan(first, last, x, self.options)
        with torch.no_grad():
            # A plan is for one dtype.
            if plan is None or self.explanation.dtype is not x.dtype:
                return self._one_by_one(x, timesteps[first:last].unbind(), requests, functions)
            return self._planned(plan, x, requests, functions)

    @property
    def guided(self) -> bool:
        """Whether the step itself puts two answers together."""
        return self.explanation.scale is not None

    def _one_by_one(
        self, x: Tensor, own: Sequence[Tensor], requests: Sequence[Request], functions: Functions
    ) -> Tensor:
        def step(place: int, x: Tensor, out: Tensor, out_null: Tensor | None) -> Tensor:
            guide = None if out_null is None else Guide(out_null, *self._guidance())
            done: Tensor = self.scheduler.advance(out, own[place], x, guide=guide, **self.options)[0]
            return done

        def seen(place: int, x: Tensor) -> Tensor:
            return scaled(self.scheduler, x, own[place])

        return self._in_several(len(own), seen, step, x, requests, functions)[0]

    def _guidance(self) -> tuple[float, float]:
        made = self.explanation
        return (1.0, 0.0) if made.scale is None else (made.scale, made.rescale)

    def _planned(self, plan: StepPlan, x: Tensor, requests: Sequence[Request], functions: Functions) -> Tensor:
        """The loop without the scheduler."""
        single = requests[0] if len(requests) == 1 else None
        if single is not None and single.state is not None:
            x, made = self._in_one_call(plan, x, single, single.state, functions[single.net])
        else:
            stepper = plan.bind(*self._guidance(), self.options.get("generator"))
            seen = (lambda place, x: x / plan.steps[place].scale) if plan.scaled else (lambda place, x: x)
            x, made = self._in_several(len(plan.steps), seen, stepper, x, requests, functions)
        plan.steps = plan.steps[:made]
        self.scheduler.planned_done(plan)
        return x

    def _in_several(
        self, steps: int, seen: Callable[[int, Tensor], Tensor], step: Callable[..., Tensor], x: Tensor,
        requests: Sequence[Request], functions: Functions,
    ) -> tuple[Tensor, int]:  # fmt: skip
        """(the last state, steps made) of any loop. seen(place, x): states as the denoiser sees them; step(place, x,
        out, out_null): the next ones.
        """
        made = 0
        for place in range(steps):
            answers = self._answers(place, States(seen(place, x)), requests, functions)
            x, made = step(place, x, *self._split(answers, x)), place + 1
            if self.ends():
                break
        return x, made

    def _in_one_call(
        self, plan: StepPlan, x: Tensor, request: Request, state: tuple[int, Any, Whole], function: Callable[..., Any]
    ) -> tuple[Tensor, int]:
        """As `_in_several`; what a step writes is the next model input, where nothing is in between.

        A model call leaves no cache warm: each function that the loop touches costs a microsecond or two.
        """
        side, key, rule = state
        # What a step under guidance can write is the states twice.
        kept = rule.dtype is x.dtype and rule.copies == 1 + self.guided and not plan.scaled
        stepper = plan.bind(*self._guidance(), self.options.get("generator"), twice=kept and self.guided)
        arguments, timed, held, ends, scaled_down = request.made, request.timed, request.held, self.ends, plan.scaled
        halves, plain, direct, x_in, made = False, False, None, None, 0
        for place, planned in enumerate(plan.steps):
            for where, name, values in timed:
                arguments[where][name] = values[place]
            for where, name, value in held:
                arguments[where][name] = fresh(value)
            if x_in is None:
                x_in = rule.laid(x / planned.scale if scaled_down else x)
            arguments[side][key] = x_in
            answer = function(*arguments[0], **arguments[1])
            if type(answer) is not Tensor:
                answer = answer[0] if type(answer) is tuple else answer_of(answer)
            moved: Tensor | None = None if direct is None else direct.step(planned.row, x, answer)
            if direct is None or moved is None:
                if place == 0:
                    halves, plain = self._is_halves(answer, x), self._is_plain(answer, x)
                if halves:
                    x = stepper(place, x, answer, halves=True)
                else:
                    x = stepper(place, x, *((answer, None) if plain else self._split([answer], x)))
                if place == 0 and (halves or plain):
                    direct = stepper.direct
                x_in = None if not kept else stepper.doubled if self.guided else x
            else:
                x, x_in = moved, direct.x_in if kept else None
            made = place + 1
            if ends():
                break
        return x, made

    def _answers(self, place: int, states: States, requests: Sequence[Request], functions: Functions) -> list[Any]:
        answers: list[Any] = []
        known: list[list[Tensor]] = []
        for request in requests:
            args, kwargs = request.at(place, states, known)
            out = functions[request.net](*args, **kwargs)
            answers.append(answer_of(out))
            known.append(tensors_of(out) if request.taken else [])
        return answers

    def _is_plain(self, out: Any, x: Tensor) -> bool:
        """Whether the network's answer is the output."""
        made = self.explanation
        return isinstance(out, Tensor) and made.weights == (1.0,) and out.shape == x.shape and out.dtype is made.dtype

    def _is_halves(self, out: Any, x: Tensor) -> bool:
        """Whether the network's answer is what is guided: the one without the prompt first."""
        made = self.explanation
        part = made.calls[0].part
        return (
            isinstance(out, Tensor) and part is not None and part.dim is None and part.copies == 2
            and made.scale is not None and made.null == 0 and out.dtype is made.dtype
            and out.shape == (2 * x.shape[0], *x.shape[1:])
        )  # fmt: skip

    def _split(self, answers: Sequence[Any], x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the solver step takes: with the prompt, and without it where guided."""
        made = self.explanation
        pairs = zip(made.calls, answers, strict=True)
        parts = [part for rule, out in pairs if rule.part is not None for part in rule.part.of(out, x)]
        if made.scale is None or made.null is None:
            return made.output(parts), None
        return parts[1 - made.null].to(made.dtype), parts[made.null].to(made.dtype)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """The scheduler's attributes are as before afterwards."""
        attributes = self.scheduler.attributes
        held = {name: value.copy() if type(value) in (list, dict) else value for name, value in attributes.items()}
        ends, self.ends = self.ends, lambda: False
        try:
            yield
        finally:
            self.ends = ends
            for name in attributes.keys() - held.keys():
                del attributes[name]
            attributes.update(held)


def function_of(module: Any) -> Any:
    """What a call of a network does, without what torch does around it."""
    plain = type(module).__call__ is nn.Module.__call__ and module._compiled_call_impl is None
    # What torch's call does where there is a hook is left to it.
    own = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(module, name) for name in own) or _has_any_global_hook()
    return module.forward if plain and not hooked else module
