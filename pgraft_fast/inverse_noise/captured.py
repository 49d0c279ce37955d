"""The inverse of a batch without a look at its values by the host, so that all of it is one CUDA graph.

As `fixed_point.solve`, sample by sample, but a sample that has converged stays in the batch until the last one is done,
and is not changed any more. What a small network costs on a GPU is its launches, and here there is one.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.errors import BackendError
from pgraft_fast.inverse_noise.fixed_point import DAMPINGS, FLOOR, HISTORY, Inverse, start_of
from pgraft_fast.inverse_noise.generator import FlowStep, Forward, Velocity, psi
from pgraft_fast.ops import anderson_mix, fixed_point_update, nvcc
from pgraft_fast.ops.checks import over_samples
from pgraft_fast.sampling import GraphCache, Model
from pgraft_fast.sampling.device_while import device_while
from pgraft_fast.sampling.graphs import weights_key

_LOG = logging.getLogger(__name__)


def can_capture(model: Model, x: Tensor, graphs: GraphCache) -> bool:
    """Whether `inverse_in_graph` may be tried; why not is logged where loops in graphs cannot be built here."""
    if not graphs.captures(x.device) or not isinstance(model, nn.Module):
        return False
    if not getattr(model, "can_be_captured", True):
        return False
    if x.is_cuda:
        try:
            with torch.cuda.device(x.device):
                nvcc.load(torch.cuda.current_device())
        except BackendError as error:
            _LOG.info("the inversion runs without CUDA graphs: %s", error)
            return False
    return True


def inverse_in_graph(
    graphs: GraphCache, model: Any, plan: list[FlowStep], x: Tensor, condition: Tensor | None,
    dtype: torch.dtype | None, tolerance: float, most: int,
) -> Inverse | None:  # fmt: skip
    """The graph's answer for x (B, ...); None where no graph could be made, which is logged."""
    forward, pools = Forward.of(plan, x), list[torch.cuda.MemPool]()

    def function(inputs: list[Tensor], generators: list[torch.Generator]) -> list[Tensor]:
        pool = None
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            pool = torch.cuda.MemPool()
            pools.append(pool)
        rows = inputs[1] if len(inputs) > 1 else None
        made: Any = _inverse(plan, Velocity(model, dtype), inputs[0], rows, forward, tolerance, most, pool)
        return [*made]

    key = ("invert", weights_key(model), tuple(plan), dtype, tolerance, most)
    values = graphs.run(
        key, function, [x, *([] if condition is None else [condition])], keep=lambda: (model, forward, pools)
    )
    return None if values is None else Inverse(*values)


@torch.no_grad()
def _inverse(
    plan: list[FlowStep], velocity: Velocity, x: Tensor, condition: Tensor | None, forward: Forward, tolerance: float,
    most: int, pool: torch.cuda.MemPool | None = None,
) -> Inverse:  # fmt: skip
    """Arguments as in `fixed_point.inverse`. pool: of `device_while`."""
    state = _State.of(x)
    fine = torch.isfinite(x.flatten(1)).all(dim=1)
    tolerance = max(tolerance, 2.0 * torch.finfo(x.dtype).eps)
    y, rates, slopes = x.clone(), [], list[Tensor]()
    calls = torch.zeros((), dtype=torch.int64, device=x.device)
    for step in reversed(plan):
        state.begin(fine, y / step.a)
        guess = start_of(step, y, slopes)
        for damping in DAMPINGS:
            state.restart(guess if damping == 1.0 else state.scaled)
            iteration = _Iteration(state, step, velocity, condition, damping, tolerance)
            calls += step.evaluations * device_while(state.left, iteration, most, pool=pool)
        rates.append(torch.where(fine, state.contraction, torch.nan))
        slopes = [(step.a * state.solved - y) / step.h, *slopes[:1]]
        y = torch.where(over_samples(fine, y), state.solved, y)
        fine = fine & state.converged
    return Inverse(y, fine, torch.stack(rates[::-1]), forward(velocity, y, condition), calls * x.shape[0])


@dataclass
class _State:
    """Of one step, in place. scaled: x / a. live: the samples to solve. active: those of them not done. solved: the
    answers. y, before, image: the iterate, the one before and what became of it. last: (B,) residuals. following,
    residual: (m, B, ...) rings of iterates, slot the next place. fresh: whether nothing is in them. left: of
    `device_while`.
    """

    scaled: Tensor
    live: Tensor
    active: Tensor
    converged: Tensor
    contraction: Tensor
    solved: Tensor
    y: Tensor
    before: Tensor
    image: Tensor
    last: Tensor
    following: Tensor
    residual: Tensor
    places: Tensor
    slot: Tensor
    fresh: Tensor
    left: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "_State":
        batch, device = x.shape[0], x.device
        live, active, converged = (torch.zeros(batch, dtype=torch.bool, device=device) for _ in range(3))
        scaled, solved, y, before, image = (torch.zeros_like(x) for _ in range(5))
        contraction, last = x.new_zeros(batch), x.new_zeros(batch)
        following, residual = x.new_zeros(HISTORY, *x.shape), x.new_zeros(HISTORY, *x.shape)
        places = torch.arange(HISTORY, device=device)
        slot, fresh, left = (
            torch.ones(1, dtype=dtype, device=device) for dtype in (torch.int64, torch.bool, torch.int32)
        )
        return cls(
            scaled, live, active, converged, contraction, solved, y, before, image, last, following, residual, places,
            slot, fresh, left,
        )  # fmt: skip

    def begin(self, live: Tensor, scaled: Tensor) -> None:
        """Another step."""
        self.scaled.copy_(scaled)
        self.solved.copy_(scaled)
        self.live.copy_(live)
        self.converged.zero_()
        self.contraction.fill_(torch.nan)

    def restart(self, y: Tensor) -> None:
        """From these iterates, of all that have not converged."""
        self.y.copy_(y)
        self.active.copy_(self.live & self.converged.logical_not())
        self.last.fill_(torch.inf)
        self.fresh.fill_(True)
        self.left.copy_(self.active.any())


@dataclass(frozen=True)
class _Iteration:
    """One evaluation of the batch, see `fixed_point`."""

    state: _State
    step: FlowStep
    velocity: Velocity
    condition: Tensor | None
    damping: float
    tolerance: float

    def __call__(self) -> None:
        state, step = self.state, self.step
        slope = psi(step, self.velocity, state.y, self.condition)
        following, residual = fixed_point_update(state.scaled, slope, state.y, -step.h / step.a)
        size = following.flatten(1).norm(dim=1).clamp(min=torch.finfo(following.dtype).tiny)
        self._measure(following, size)
        done = state.active & (residual <= self.tolerance * size)
        state.solved.copy_(torch.where(over_samples(done, following), following, state.solved))
        state.converged.logical_or_(done)
        state.active.logical_and_(done.logical_not() & torch.isfinite(residual))
        self._go_on(following, residual > state.last)
        state.last.copy_(residual)
        state.fresh.fill_(False)
        state.left.copy_(state.active.any())

    def _measure(self, following: Tensor, size: Tensor) -> None:
        state = self.state
        moved, answered = ((state.y - state.before).flatten(1).norm(dim=1),
                           (following - state.image).flatten(1).norm(dim=1))  # fmt: skip
        ratio = torch.where(
            state.active & state.fresh.logical_not() & (moved > FLOOR * size), answered / moved, torch.nan
        )
        state.contraction.copy_(torch.fmax(state.contraction, ratio))

    def _go_on(self, following: Tensor, grown: Tensor) -> None:
        """The next iterates of those still active. The first one fills the whole ring: a mixture of equal ones is it,
        and of each that is there several times over it is the mixture of one.
        """
        state = self.state
        change = following - state.y
        moved = following if self.damping == 1.0 else torch.add(state.y, change, alpha=self.damping)
        here = (state.fresh | (state.places == state.slot)).view(-1, *[1] * moved.ndim)
        state.following.copy_(torch.where(here, moved, state.following))
        state.residual.copy_(torch.where(here, change, state.residual))
        state.slot.add_(1).remainder_(HISTORY)
        mixed = anderson_mix(state.following, state.residual)
        plain = state.fresh | grown | torch.isfinite(mixed.flatten(1)).all(dim=1).logical_not()
        state.before.copy_(state.y)
        state.image.copy_(following)
        ahead = torch.where(over_samples(plain, mixed), moved, mixed)
        state.y.copy_(torch.where(over_samples(state.active, mixed), ahead, state.y))
