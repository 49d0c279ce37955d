"""Data pushed back through the exact inverse of a flow's discrete generator."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.inverse_noise.captured import can_capture, inverse_in_graph
from pgraft_fast.inverse_noise.fixed_point import inverse
from pgraft_fast.inverse_noise.generator import Velocity, as_state, flow_steps
from pgraft_fast.sampling import GraphCache, Model
from pgraft_fast.sampling.choice import choose, model_name
from pgraft_fast.threads import team_of

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inversion:
    """What `invert` found for B samples.

    noise: (B, ...) float32 at t = 1; nan for a sample that failed. converged: (B,) bool. round_trip: (B,), how far the
    generator's answer to the noise is from the sample, relative. calls: network calls of one sample, those of the round
    trip left out. contraction: the largest factor by which an iteration shrank its error, h L of the theory; above 1
    the plain iteration diverges. contraction_of_step: (S,), from t = 1 on; nan where no sample told.
    """

    noise: Tensor
    converged: Tensor
    round_trip: Tensor
    calls: int
    contraction: float
    contraction_of_step: Tensor

    def summary(self) -> str:
        """One line; with what to do where samples failed."""
        failed, total = int((~self.converged).sum()), self.converged.numel()
        line = f"{total - failed} of {total} samples inverted, {self.calls / max(1, total):.1f} calls each, " \
            f"contraction {self.contraction:.2f}"  # fmt: skip
        if failed == 0:
            return line
        return f"{line}; {failed} failed and are left out (nan): take more steps, or less guidance"


@torch.no_grad()
def invert(
    model: Model,
    x_0: Tensor,
    steps: int = 20,
    *,
    solver: str = "euler",
    grid: Tensor | None = None,
    eta: float | None = None,
    condition: Tensor | None = None,
    dtype: torch.dtype | None = None,
    tolerance: float = 1e-6,
    round_trip_limit: float = 1e-5,
    max_iterations: int = 40,
    batch_size: int = 256,
    graphs: GraphCache | None = None,
    on_batch: Callable[[int], None] = lambda samples: None,
    check: Callable[[], None] = lambda: None,
) -> Inversion:
    """The noise from which the generator makes x_0.

    model(x, t[, condition]) -> dx/dt with t = 1 noise and t = 0 data; guidance belongs into it. x_0: (B, ...) data.
    steps, solver, grid, eta: the generator's, see `flow_steps`; the default is Euler in uniform steps. dtype: of the
    model's input; the state is float32 whatever it is. condition: (B, ...), rows for the model.
    tolerance: of each step's equation, a sample, relative; two units of the state's rounding at the finest.
    round_trip_limit: a sample is converged where all steps were and the generator gives it back this closely.
    max_iterations: of a step, before it goes on with damping. on_batch(samples): after each batch; check(): between
    model calls, may raise.
    graphs: on CUDA, a batch of a module is one graph, kept here for the next call; its weights may change in place. A
    sample then stays in the batch until the last one is done, which costs a few more calls: worth it where a network's
    launches take longer than its arithmetic. check() comes between batches.

    Source: arXiv 2510.02692, inverse noise correction: the exact inverse of the forward Euler step is the solution of
    an implicit one. Raises InputError.
    """
    if x_0.ndim < 2 or x_0.shape[0] == 0 or not x_0.is_floating_point():
        raise InputError(
            f"x_0 is {x_0.dtype} {tuple(x_0.shape)}: (B, ...) floating with B >= 1 is needed, (B, 1) of single numbers"
        )
    if condition is not None and condition.shape[0] != x_0.shape[0]:
        raise InputError(f"condition has {condition.shape[0]} rows for {x_0.shape[0]} samples")
    for name, value in (("tolerance", tolerance), ("round_trip_limit", round_trip_limit)):
        if not value > 0:
            raise InputError(f"{name}={value}: it must be above 0")
    if tolerance > round_trip_limit:
        raise InputError(f"tolerance={tolerance} is above round_trip_limit={round_trip_limit}: no sample would pass")
    for name, count in (("max_iterations", max_iterations), ("batch_size", batch_size)):
        if count < 1:
            raise InputError(f"{name}={count}: at least 1")
    plan = flow_steps(steps, solver, grid=grid, eta=eta)
    team = team_of(model, min(batch_size, x_0.shape[0]), x_0.shape[1:], x_0.device)
    caller = threading.get_ident()

    def go_on() -> None:
        team.check()
        # What may raise is for the caller's own thread.
        if threading.get_ident() == caller:
            check()

    def part(rows: slice) -> _Part:
        x, condition_rows = as_state(x_0[rows]), None if condition is None else condition[rows]
        solution = None
        if graphs is not None and can_capture(model, x, graphs):
            go_on()
            solution = inverse_in_graph(graphs, model, plan, x, condition_rows, dtype, tolerance, max_iterations)
        if solution is None:
            velocity = Velocity(model, dtype, check=go_on)
            solution = inverse(plan, velocity, x, condition_rows, tolerance, max_iterations)
        y, fine, rates, back, calls = solution
        off = (back - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
        fine = fine & (off <= round_trip_limit)
        noise = torch.where(fine.view(-1, *[1] * (y.ndim - 1)), y, torch.full_like(y, float("nan")))
        return _Part(noise, fine, off, rates, int(calls))

    parts: list[_Part] = []
    for count, done in team.batches(x_0.shape[0], batch_size, part):
        parts += done
        on_batch(count)
    of_step = _largest(torch.cat([done.rates for done in parts], dim=1), dim=1)
    inversion = Inversion(
        torch.cat([done.noise for done in parts]),
        torch.cat([done.converged for done in parts]),
        torch.cat([done.round_trip for done in parts]),
        sum(done.calls for done in parts),
        float(_largest(of_step, dim=0)),
        of_step,
    )
    if not bool(inversion.converged.all()):
        _LOG.warning("%s", inversion.summary())
    return inversion


def is_faster_in_graphs(model: Model, x_0: Tensor, **how: Any) -> bool:
    """Whether `invert` of x_0 (B, ...) is faster with `graphs`; False where there are none. how: its other arguments.
    Both ways run a few times, once for each device, model and shape, see `choose`.
    """
    graphs = GraphCache()
    if not can_capture(model, x_0, graphs):
        return False
    what = f"inversion, {model_name(model, x_0.device)}, {tuple(x_0.shape)}, {sorted(how.items(), key=str)}"
    ways = {"plain": partial(invert, model, x_0, **how), "graph": partial(invert, model, x_0, graphs=graphs, **how)}
    return choose(what, ways, x_0.device) == "graph"


class _Part(NamedTuple):
    """Of some rows, see `Inversion`. rates: (S, B) contraction."""

    noise: Tensor
    converged: Tensor
    round_trip: Tensor
    rates: Tensor
    calls: int


def _largest(values: Tensor, dim: int) -> Tensor:
    """The maximum of what is a number."""
    known = torch.where(torch.isnan(values), torch.full_like(values, -float("inf")), values).amax(dim=dim)
    return torch.where(torch.isinf(known), torch.full_like(known, float("nan")), known)
