"""A flow's discrete generator, step by step: the map that is inverted.

A step takes x at time t to time s < t, with the velocity dx/dt = v(x, t) of a network:

    x_s = a x_t - h psi(x_t),    psi = v(x, t)                                    euler, flow_sde
                                 psi = (v(x, t) + v(x - h v(x, t), s)) / 2        heun (the last step euler)
                                 psi = v(x - h v(x, t) / 2, (t + s) / 2)          midpoint

with a = 1 and h = t - s, but for flow_sde: the step of Euler-Maruyama on the reverse SDE of the linear flow with its
noise left out (see `sampling.solvers`, euler_sde), which also shrinks the state.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.sampling import Model, make_steps
from pgraft_fast.sampling.answers import answer_of
from pgraft_fast.sampling.loop import Loop, StepInputs
from pgraft_fast.sampling.recorded import combined
from pgraft_fast.sampling.solvers import Table
from pgraft_fast.threads import team_of

SOLVERS = ("euler", "heun", "midpoint", "flow_sde")


class FlowStep(NamedTuple):
    """See the module. kind: of psi, "euler", "heun" or "midpoint"."""

    t: float
    s: float
    a: float
    h: float
    kind: str

    @property
    def evaluations(self) -> int:
        """Network calls of psi."""
        return 1 if self.kind == "euler" else 2


def flow_steps(
    steps: int = 20, solver: str = "euler", *, grid: Tensor | None = None, eta: float | None = None
) -> list[FlowStep]:
    """The steps from t = 1 to 0, uniform, or on `grid` (S + 1,) falling times. eta: of flow_sde. Raises InputError."""
    if solver not in SOLVERS:
        raise InputError(f"solver={solver!r} is unknown; known: {', '.join(SOLVERS)}")
    if eta is not None and solver != "flow_sde":
        raise InputError(f"eta={eta} has no meaning for solver={solver!r}; it belongs to flow_sde")
    if grid is None:
        if steps < 1:
            raise InputError(f"steps={steps}: at least 1")
        grid = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    # The table checks the grid, too.
    table = make_steps(
        Schedule.linear_flow(), grid, "euler_sde" if solver == "flow_sde" else "euler", "velocity",
        eta if solver == "flow_sde" else None,
    )  # fmt: skip
    plan = []
    for row in table:
        # x_0 = x - t v, and the table's x_s = a x + b x_0.
        a, h = (row.a + row.b, row.b * row.t) if solver == "flow_sde" else (1.0, row.t - row.s)
        kind = "euler" if solver == "flow_sde" or (solver == "heun" and row.s == 0.0) else solver
        plan.append(FlowStep(row.t, row.s, a, h, kind))
    return plan


def table_of(plan: list[FlowStep]) -> Table:
    """The rows of these steps, with the velocity in the place of x_0."""
    rows: list[list[float]] = []
    times, of_step = [], []
    for number, (t, s, a, h, kind) in enumerate(plan, start=1):
        # Of two evaluations the second counts with the state that it is asked at and with the first one.
        first, second = {
            "euler": ((a, -h, 0.0), None),
            "heun": ((1.0, -h, 0.0), (s, 0.5, -0.5 * h, 0.5)),
            "midpoint": ((1.0, -0.5 * h, 0.0), (0.5 * (t + s), 0.0, -h, 1.0)),
        }[kind]
        begin = len(rows)
        for time, *row in [(t, *first)] if second is None else [(t, *first), second]:
            rows.append([0.0, 1.0, *row, 0.0, number, 0.0])
            times.append(time)
        of_step.append(range(begin, len(rows)))
    double = torch.float64
    return Table(torch.tensor(rows, dtype=double), torch.tensor(times, dtype=double), of_step, multistep=False)


@dataclass
class Velocity:
    """The network's velocity in the dtype of the state, counted. model(x, t[, condition]); dtype: of its input.

    calls: of one sample. check(): before each call.
    """

    model: Model
    dtype: torch.dtype | None = None
    calls: int = 0
    check: Callable[[], None] = field(default=lambda: None)

    def __call__(self, x: Tensor, times: Tensor, condition: Tensor | None = None) -> Tensor:
        """times: (B,)."""
        self.calls += x.shape[0]
        self.check()
        dtype = self.dtype or x.dtype
        answer = answer_of(self.model, x.to(dtype), times.to(dtype), condition)
        return combined(*answer).to(x.dtype)

    def at(self, x: Tensor, t: float, condition: Tensor | None) -> Tensor:
        """At one time."""
        return self(x, torch.full((x.shape[0],), t, dtype=self.dtype or x.dtype, device=x.device), condition)


def psi(step: FlowStep, velocity: Velocity, x: Tensor, condition: Tensor | None) -> Tensor:
    """See the module. x: (B, ...)."""
    first = velocity.at(x, step.t, condition)
    if step.kind == "euler":
        return first
    if step.kind == "midpoint":
        return velocity.at(torch.add(x, first, alpha=-0.5 * step.h), 0.5 * (step.t + step.s), condition)
    return 0.5 * (first + velocity.at(torch.add(x, first, alpha=-step.h), step.s, condition))


@torch.no_grad()
def generate(
    model: Model,
    noise: Tensor,
    steps: int = 20,
    *,
    solver: str = "euler",
    grid: Tensor | None = None,
    eta: float | None = None,
    condition: Tensor | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Samples (B, ...) float32 of a flow from noise (B, ...) at t = 1, without noise on the way.

    model(x, t[, condition]) -> dx/dt. Arguments as in `invert`, whose inverse this is. Raises InputError.
    """
    plan = flow_steps(steps, solver, grid=grid, eta=eta)
    team = team_of(model, min(batch_size, noise.shape[0]), noise.shape[1:], noise.device)

    def part(rows: slice) -> Tensor:
        velocity, x = Velocity(model, dtype, check=team.check), as_state(noise[rows])
        return Forward.of(plan, x)(velocity, x, None if condition is None else condition[rows])

    return torch.cat([x for _, done in team.batches(noise.shape[0], batch_size, part) for x in done])


@dataclass(frozen=True)
class Forward:
    """All steps of batches of one size. What it reads beside the states is on their device from the start."""

    loop: Loop
    inputs: StepInputs

    @classmethod
    def of(cls, plan: list[FlowStep], like: Tensor) -> "Forward":
        """like: (B, ...) states."""
        loop = Loop(table_of(plan), dtype=like.dtype)
        return cls(loop, loop.inputs(torch.arange(like.shape[0], device=like.device), None))

    def __call__(self, velocity: Velocity, x: Tensor, condition: Tensor | None) -> Tensor:
        """x_0 (B, ...) of x at t = 1."""
        steps, inputs = len(self.loop.rows.of_step), self.inputs._replace(condition=condition)
        return self.loop.run(velocity, 0, steps, x, None, inputs)[0]


def as_state(x: Tensor) -> Tensor:
    """float32, or float64 as it is."""
    return x if x.dtype is torch.float64 else x.to(torch.float32)
