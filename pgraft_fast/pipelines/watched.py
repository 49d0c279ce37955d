"""A call of a pipeline in its own loop, watched from step to step: whether all of it is explained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.pipelines.arguments import Wanted, built
from pgraft_fast.pipelines.explain import Iteration, NotExplainedError, explained, parts_of
from pgraft_fast.pipelines.fitting import Output, fits
from pgraft_fast.pipelines.loop import NetCall
from pgraft_fast.pipelines.rules import Explanation, shapes_in, tensors_of, values_of
from pgraft_fast.pipelines.trees import outline, same, zeros_like

# Steps that are explained; all later ones are compared with the explanation.
_EXPLAINED = 3


@dataclass(frozen=True)
class Stage:
    """Steps that are made alike. blanks: for each call of a network what it returned, in zeros. outlines, shapes: of
    its arguments, and of those that hold states and times. first, steps: which of the scheduler's timesteps.
    """

    explanation: Explanation
    blanks: tuple[Any, ...]
    outlines: tuple[Any, ...]
    shapes: tuple[Any, ...]
    first: int
    steps: int

    @classmethod
    def of(cls, explanation: Explanation, calls: Sequence[NetCall], first: int, steps: int) -> "Stage":
        """calls: of its first iteration."""
        pairs = zip(explanation.calls, calls, strict=True)
        return cls(
            explanation,
            blanks=tuple(zeros_like(call.out) for call in calls),
            outlines=tuple(outline((call.args, call.kwargs)) for call in calls),
            shapes=tuple(shapes_in(rule, call.args, call.kwargs) for rule, call in pairs),
            first=first,
            steps=steps,
        )

    @property
    def last(self) -> int:
        """The step after its last one."""
        return self.first + self.steps

    @property
    def nets(self) -> frozenset[str]:
        """Names of the networks that are called."""
        return frozenset(rule.net for rule in self.explanation.calls)

    def is_like(self, place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call of a network, the one with this place in an iteration, is like the one that was watched."""
        if outline((args, kwargs)) != self.outlines[place]:
            return False
        return shapes_in(self.explanation.calls[place], args, kwargs) == self.shapes[place]


@dataclass(frozen=True)
class Understood:
    """A loop. stages: in their order; several where later steps are made by other networks, or by calls of another
    number or shape, as experts by noise level or guidance that ends. total: timesteps of the scheduler.
    """

    stages: tuple[Stage, ...]
    total: int

    @property
    def nets(self) -> frozenset[str]:
        """Names of the networks that are called."""
        return frozenset[str]().union(*(stage.nets for stage in self.stages))

    @property
    def scale(self) -> float | None:
        """Of guidance, where all steps have one."""
        return self.stages[0].explanation.scale if len(self.stages) == 1 else None

    def with_scale(self, scale: float) -> "Understood":
        """With another scale of guidance."""
        (stage,) = self.stages
        return replace(self, stages=(replace(stage, explanation=stage.explanation.with_scale(scale)),))


class Watch:
    """of(name, network): what a call of the network does; `step` after each step, `understood` after the call.

    Nothing of what the pipeline does is changed. final: the state after the last step. first: once it is explained, the
    first iteration and the state after it. Arguments are copied before each call, since some loops write into their
    tensors.
    """

    def __init__(self) -> None:
        self.why: str | None = None
        self.first: tuple[Iteration, Tensor] | None = None
        self.iterations: list[Iteration] = []
        self.final: Tensor | None = None
        self._calls: list[NetCall] = []
        self._times: list[float] = []
        self._options: Any = None
        self._after: Tensor | None = None
        self._explanation: Explanation | None = None
        self._stages: list[Stage] = []

    def of(self, name: str, net: Callable[..., Any]) -> Callable[..., Any]:
        """See above."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.why is not None:
                return net(*args, **kwargs)
            self._calls.append(NetCall.of(name, net, args, kwargs))
            return self._calls[-1].out

        return call

    def step(
        self, seen: Tensor, timestep: Any, sample: Any, out: Any, options: Any, after: Any, alone: bool = True
    ) -> None:
        """scheduler.step(out, timestep, sample, **options) gave `after`. seen: sample as the denoiser sees it. alone:
        whether a scheduler that nobody touched since the first step gives the same.
        """
        if self.why is not None:
            return
        calls, self._calls = tuple(self._calls), []
        if not all(isinstance(value, Tensor) for value in (timestep, sample, out, after)) or timestep.numel() != 1:
            self._leave("its steps are not made of tensors")
        elif out.shape != sample.shape:
            self._leave("its output has another shape than the state")
        elif self.final is not None and not same(self.final, sample):
            self._leave("it changes the state between two steps")
        elif not alone:
            self._leave("it changes its scheduler between two steps")
        elif self._times and not same(self._options, options):
            self._leave("options of its steps change")
        else:
            self._options, self.final = options, after.detach().clone()
            self._after = self.final if self._after is None else self._after
            self._times.append(float(timestep))
            self._see(Iteration(seen.detach().clone(), timestep.reshape(()), calls, out.detach().clone()))

    def understood(self, times: Sequence[float], steps: int | None) -> Understood:
        """After the call. times: the scheduler's timesteps; steps: that the pipeline says it makes, where it does.

        Raises NotExplainedError.
        """
        if self.why is None and len(self._times) < 2:
            self._leave("a single step says nothing of its loop")
        if self.why is None:
            self._end_stage(len(self._times))
        first = 0 if self.why is not None else self._place(list(times), steps)
        if self.why is not None:
            raise NotExplainedError(self.why)
        return Understood(tuple(replace(stage, first=first + stage.first) for stage in self._stages), len(times))

    def beginning(self, nets: frozenset[str]) -> Iteration:
        """The first iteration with its calls of these networks."""
        first = self.iterations[0]
        return replace(first, calls=tuple(call for call in first.calls if call.net in nets))

    def _leave(self, why: str) -> None:
        self.why, self.iterations, self._calls = why, [], []

    def _see(self, iteration: Iteration) -> None:
        # Of the first stage, before which others are called, the first two are compared where it is explained.
        comparable = len(self.iterations) > 1 or self._explanation is not None or bool(self._stages)
        if comparable and _form(iteration) != _form(self.iterations[-1]):
            self._end_stage(len(self._times) - 1)
        elif self._explanation is not None:
            if not agrees(self._explanation, self.iterations[0], iteration):
                self._leave(f"step {len(self._times)} is not made as those before")
            return
        if self.why is None:
            self.iterations.append(iteration)
        if len(self.iterations) == _EXPLAINED:
            self._explain()

    def _end_stage(self, end: int) -> None:
        """Before step `end`, of those that were seen."""
        if self._explanation is None:
            self._explain()
        if self._explanation is not None:
            if self.first is None and self._after is not None:
                self.first = self.iterations[0], self._after
            start = self._stages[-1].last if self._stages else 0
            self._stages.append(Stage.of(self._explanation, self.iterations[0].calls, start, end - start))
            self._explanation, self.iterations = None, []

    def _explain(self) -> None:
        if len(self.iterations) < 2 or (self.iterations[0].calls and not self.iterations[1].calls):
            self._leave("its calls of networks change")
            return
        if not self._stages:
            # Before the first step others are called as well, as those that encode prompts.
            self.iterations[0] = self.beginning(frozenset(call.net for call in self.iterations[1].calls))
        try:
            self._explanation = explained(self.iterations, self.iterations)
        except NotExplainedError as error:
            self._leave(str(error))
        self.iterations = self.iterations[:1]

    def _place(self, times: list[float], steps: int | None) -> int:
        """Of the first step; some schedulers have a time twice."""
        made = len(self._times)
        places = [first for first in range(len(times)) if times[first : first + made] == self._times]
        if not places:
            self._leave("its timesteps are not the scheduler's")
        elif made != (len(times) - places[-1] if steps is None else steps):
            self._leave("it ended before its last step")
        return places[-1] if places else 0


def _form(iteration: Iteration) -> list[tuple[str, list[torch.Size]]]:
    """Equal for iterations of one stage."""
    return [(call.net, [value.shape for value in tensors_of((call.args, call.kwargs))]) for call in iteration.calls]


def agrees(explanation: Explanation, first: Iteration, now: Iteration) -> bool:
    """Whether an iteration is as explained. first: of which the constants are."""
    if [call.net for call in now.calls] != [rule.net for rule in explanation.calls]:
        return False
    pairs = zip(explanation.calls, now.calls, strict=True)
    if any(call.writes or (call.empties and not rule.empties) for rule, call in pairs):
        return False
    answers: list[list[Tensor]] = []
    t = now.t.to(now.x.device)
    wanted = Wanted(now.x, lambda rule: rule.of(t).expand(rule.extra), answers)
    for rule, first_call, call in zip(explanation.calls, first.calls, now.calls, strict=True):
        rules = (rule.args, rule.kwargs)
        try:
            leaves = (value for _, value in values_of(rules, (first_call.args, first_call.kwargs)))
            if not same(built(rules, leaves, wanted), (call.args, call.kwargs)):
                return False
        except (KeyError, IndexError, ValueError, TypeError, RuntimeError):
            # Arguments of another structure.
            return False
        answers.append(tensors_of(call.out))
    return fits(explanation, Output(parts_of(explanation.calls, now), now.out))
