"""Steps of a watched call, made twice: by the pipeline's scheduler and by a copy that its loop does not touch."""

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.pipelines.accelerated.rehearsal import ALLOWED, Randomness
from pgraft_fast.pipelines.accelerated.steps import after_step, steps_of
from pgraft_fast.pipelines.accelerated.trajectory import Trajectory
from pgraft_fast.pipelines.explain import Iteration, NotExplainedError
from pgraft_fast.pipelines.trees import fresh, same
from pgraft_fast.pipelines.watched import Stage

# Of a state in 16 bits, as a share of its largest value: a fused step rounds once, others at each operation.
_ROUNDED = 0.05


class WatchedSteps:
    """scheduler: as it is before its first step. Random numbers are drawn twice and count once."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler, self._copy, self._before = scheduler, copy.deepcopy(scheduler), copy.deepcopy(scheduler)
        self._first: tuple[Tensor, dict[str, Any], Randomness] | None = None

    def step(self, out: Tensor, timestep: Any, x: Tensor, options: dict[str, Any]) -> tuple[Any, bool]:
        """(what `scheduler.step` returns, whether the copy returns the same: the loop then leaves the scheduler alone).

        options: of `step`.
        """
        before = Randomness(options.get("generator"))
        if self._first is None:
            own = {name: value for name, value in options.items() if name != "return_dict"}
            self._first = x.detach().clone(), own, before
        done = self._scheduler.step(out, timestep, x, **options)
        after = Randomness(options.get("generator"))
        before.put_back()
        try:
            copied = self._copy.step(out, timestep, x, **options)
        except Exception:
            # As where the loop has set it back to an earlier step.
            return done, False
        finally:
            after.put_back()
        return done, same(after_step(done), after_step(copied))

    def check(self, stage: Stage, first: tuple[Iteration, Tensor] | None) -> None:
        """Raises NotExplainedError where a trajectory makes another state in the first step.

        stage: the first one; first: see `Watch`. No network is called: their answers are those of then.
        """
        assert self._first is not None and first is not None
        iteration, after = first
        x, options, randomness = self._first
        answers: defaultdict[str, list[Any]] = defaultdict(list)
        for call in iteration.calls:
            answers[call.net].append(call.out)
        trajectory = Trajectory(
            scheduler=steps_of(self._before), nets={}, explanation=stage.explanation,
            arguments=[(fresh(call.args), fresh(call.kwargs)) for call in iteration.calls],
            options=options, first=stage.first, last=stage.first + 1,
        )  # fmt: skip
        functions = {name: _answering(outs) for name, outs in answers.items()}
        step = lambda: trajectory.run(x, stage.first, stage.first + 1, functions)  # noqa: E731
        allowed = _ROUNDED if after.element_size() < torch.float32.itemsize else ALLOWED
        if randomness.rehearse(step, after, allowed) is not None:
            raise NotExplainedError("outside of it a step is another one")


def _answering(outs: list[Any]) -> Any:
    left = iter(outs)
    return lambda *args, **kwargs: next(left)
