"""Steps of a scheduler worked out ahead, for a loop that makes many of them."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgraft_fast.ops import SolverSteps
from pgraft_fast.ops.direct import DirectSteps
from pgraft_fast.sampling.guidance import Guide
from pgraft_fast.schedulers.fused import Generators, Rows, draw


class Planned(NamedTuple):
    """One step: its row; whether noise is drawn; the std of noise added before it; its order in a multistep solver."""

    row: int
    noisy: bool = False
    churn: float = 0.0
    order: int = 1
    scale: float = 1.0


@dataclass
class StepPlan:
    """Consecutive steps of one scheduler on states of one shape and dtype.

    limits: clip or threshold of x_0, as for `ops.solver_step`. needs_out: the model's output is the third state.
    noise_dtype: of the draws; None: that of the model's output. weights: for order 3, of the two m before.
    scaled: whether the model input is x / Planned.scale. history: the m of the steps before, the last one last.
    """

    rows: Rows
    steps: list[Planned]
    limits: dict[str, float] = field(default_factory=dict)
    needs_out: bool = False
    noise_dtype: torch.dtype | None = None
    scaled: bool = False
    multistep: bool = False
    weights: list[tuple[float, float]] = field(default_factory=list)
    history: list[Tensor] = field(default_factory=list)

    def bind(self, guidance: float, rescale: float, generator: Generators, twice: bool = False) -> "Stepper":
        """These steps under one guidance and generator. twice: see `Stepper`."""
        return Stepper(self, guidance, rescale, generator, twice)


class Stepper:
    """Runs the steps of a plan: `stepper(place, x, out, out_null)` with place 0 for the first.

    twice: the caller would like the model input for guidance, x_s twice, which is then in `doubled` if not None.
    """

    def __init__(self, plan: StepPlan, guidance: float, rescale: float, generator: Generators, twice: bool) -> None:
        self.doubled: Tensor | None = None
        self._plan, self._generator, self._twice = plan, generator, twice
        self._guide = (guidance, rescale)
        # Where the output is a third state, it is guided before the step.
        scale, rescale = (1.0, 0.0) if plan.needs_out else self._guide
        self._options: dict[str, Any] = {"guidance": scale, "guidance_rescale": rescale, **plan.limits}
        self._alone = not (plan.needs_out or plan.multistep)
        self._steps: SolverSteps | None = None
        self._pointers: DirectSteps | None = None

    def __call__(
        self, place: int, x: Tensor, out: Tensor, out_null: Tensor | None = None, halves: bool = False
    ) -> Tensor:
        """x_s. x and out: the same shape and dtype. halves: out_null and out are the halves of out (2 B, ...)."""
        plan = self._plan
        planned, dtype = plan.steps[place], x.dtype
        noise = None
        if planned.noisy or planned.churn > 0.0:
            noise = draw(x.shape, self._generator, out.device, plan.noise_dtype or out.dtype)
        if place == 0 and self._alone and out_null is None:
            table, _ = plan.rows.on(x)
            if DirectSteps.serve(x, out, table):
                self._pointers = DirectSteps(
                    table, x, out, expected=len(plan.steps), twice=self._twice, **self._options
                )
        pointers = self._pointers
        if pointers is not None and planned.churn == 0.0:
            x_s = pointers.step(planned.row, x, out, noise)
            if x_s is not None:
                self.doubled = pointers.x_in if self._twice else None
                return x_s
        if halves:
            out_null, out = out.chunk(2)
        if plan.needs_out and out_null is not None:
            out, out_null = Guide(out_null, *self._guide).combine(out), None
        if planned.churn > 0.0 and noise is not None:
            x, noise = torch.add(x, noise, alpha=planned.churn), None
        previous = out if plan.needs_out else None
        if planned.order == 2:
            previous = plan.history[-1]
        elif planned.order == 3:
            x, previous = third_state(x, plan.history, plan.weights[planned.row])
        if self._steps is None:
            self._steps = SolverSteps(*plan.rows.on(x), **self._options)
        x_next, m = self._steps(planned.row, x, out, out_null, previous, noise, plan.multistep)
        if m is not None:
            plan.history = [*plan.history[-1:], m.to(dtype)]
        self.doubled = None
        return x_next.to(dtype)

    @property
    def direct(self) -> DirectSteps | None:
        """What makes the remaining steps without this object, where they need nothing but the model's output."""
        quiet = not any(step.noisy or step.churn > 0.0 for step in self._plan.steps)
        return self._pointers if quiet else None


def third_state(x: Tensor, history: list[Tensor], weights: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """x and the weighted sum of the two m before, for a step of order 3.

    Both at least float32: where levels lie close the weights are large and nearly cancel, and the sum in 16 bits would
    be off by far more than the state's rounding.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    last, before = weights
    return x.to(wide), torch.add(history[-1].to(wide) * last, history[-2], alpha=before)
