"""The loop over the steps of a batch: a model's answers, a solver's table, an observer of the states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pgraft_fast.ops import solver_step
from pgraft_fast.ops.solver_step import SolverStep
from pgraft_fast.sampling.answers import Answer, answer_of
from pgraft_fast.sampling.guidance import Model
from pgraft_fast.sampling.solvers import Table


class StepInputs(NamedTuple):
    """Tensors that all steps of a batch read: the rows of the table and their times, a counter of them, and of each
    sample its id and condition.
    """

    table: Tensor
    times: Tensor
    counter: Tensor
    sample_id: Tensor
    condition: Tensor | None


class Seen(NamedTuple):
    """What an observer is shown after a step, of its last network evaluation: the state before, the model's answer and
    what the solver made of it.
    """

    x: Tensor
    answer: Answer
    done: SolverStep


def go_on(index: int, seen: Seen) -> Tensor:
    """An observer that only takes the next state."""
    return seen.done.x_s


@dataclass(frozen=True)
class Loop:
    """rows: of the solver. seed: of the noise. dtype: of the states. clip, log_prob: see `ops.solver_step`. check():
    called before each step, may raise.
    """

    rows: Table
    seed: int = 0
    dtype: torch.dtype = torch.float32
    clip: float | None = None
    log_prob: bool = False
    check: Callable[[], None] = lambda: None

    def inputs(self, sample_id: Tensor, condition: Tensor | None) -> StepInputs:
        """On the samples' device."""
        device = sample_id.device
        wide = torch.float64 if self.dtype is torch.float64 else torch.float32
        table = self.rows.coefficients.to(device, wide)
        times = self.rows.time.to(device, self.dtype)
        return StepInputs(table, times, torch.arange(table.shape[0], device=device), sample_id, condition)

    def run(
        self, net: Model, low: int, high: int, x: Tensor, x_0: Tensor | None, inputs: StepInputs,
        observe: Callable[[int, Seen], Tensor] = go_on,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """The steps low ... high - 1 with one model, from the state x: the last state and, of a multi-step solver, the
        last x_0. x_0: the one before x. observe(index, seen): after each step, gives the state to go on from. Nothing
        here reads a tensor back to the host.
        """
        for index in range(low, high):
            self.check()
            x_t = x
            for stage, row in enumerate(self.rows.of_step[index]):
                answer = answer_of(net, x, inputs.times.select(0, row).expand(x.shape[0]), inputs.condition)
                done = solver_step(
                    x,
                    answer.out,
                    inputs.table,
                    inputs.counter.select(0, row),
                    out_null=answer.out_null,
                    guidance=answer.scale,
                    previous=x_t if stage else x_0,
                    sample_id=inputs.sample_id,
                    seed=self.seed,
                    clip=self.clip,
                    return_x_0=self.rows.multistep,
                    return_log_prob=self.log_prob,
                )
                seen = Seen(x, answer, done)
                x, x_0 = done.x_s, done.x_0
            x = observe(index, seen)
        return x, x_0
