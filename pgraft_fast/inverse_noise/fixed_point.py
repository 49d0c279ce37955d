"""The inverse of one step by fixed-point iteration, sample by sample.

x_s = a y - h psi(y) is solved for y by y <- g(y) = (x_s + h psi(y)) / a, which contracts by about h L / a a time; L is
the Lipschitz constant of psi. A sample that has converged leaves the batch. The rest goes on by Anderson mixing of
its last iterates; where that does not end either, by shorter steps towards g(y): a half, a quarter, an eighth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pgraft_fast.inverse_noise.generator import FlowStep, Forward, Velocity, psi
from pgraft_fast.ops import anderson_mix, fixed_point_update

HISTORY = 5
DAMPINGS = (1.0, 0.5, 0.25, 0.125)
# Below this distance of two iterates, relative to them, the ratio of their images' to it is rounding.
FLOOR = 1e-4


class Inverse(NamedTuple):
    """noise: (B, ...). converged: (B,), in all steps. contraction: (S, B), nan where it did not show. back: (B, ...),
    what the generator makes of the noise. calls: of the network, of all samples together, without those of `back`.
    """

    noise: Tensor
    converged: Tensor
    contraction: Tensor
    back: Tensor
    calls: int | Tensor


@dataclass(frozen=True)
class Solved:
    """y: (B, ...), without meaning where `converged` (B,) is False. contraction: (B,), nan where it did not show."""

    y: Tensor
    converged: Tensor
    contraction: Tensor


@dataclass
class _Rows:
    """The samples still at work. index: their places in the batch. following, residual: of the last iterates;
    evaluated: the last of them and its image."""

    index: Tensor
    x: Tensor
    y: Tensor
    condition: Tensor | None
    following: list[Tensor] = field(default_factory=list)
    residual: list[Tensor] = field(default_factory=list)
    last: Tensor | None = None
    evaluated: tuple[Tensor, ...] = ()

    def keep(self, rows: Tensor) -> None:
        """Drop all others."""
        self.index, self.x, self.y = self.index[rows], self.x[rows], self.y[rows]
        self.condition = None if self.condition is None else self.condition[rows]
        self.following = [value[rows] for value in self.following]
        self.residual = [value[rows] for value in self.residual]
        self.last = None if self.last is None else self.last[rows]
        self.evaluated = tuple(value[rows] for value in self.evaluated)


def start_of(step: FlowStep, x: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """Where the steps solved before point: their velocity goes on in a straight line. slopes: the last two."""
    if not slopes:
        return x / step.a
    slope = slopes[0] if len(slopes) == 1 else 2.0 * slopes[0] - slopes[1]
    return torch.add(x, slope, alpha=step.h) / step.a


def inverse(
    plan: list[FlowStep], velocity: Velocity, x: Tensor, condition: Tensor | None, tolerance: float, most: int
) -> Inverse:
    """Of all steps. A sample that failed is not worked on any more. Arguments as in `solve`."""
    fine = torch.isfinite(x.flatten(1)).all(dim=1)
    rates = x.new_full((len(plan), x.shape[0]), float("nan"))
    y = x.clone()
    slopes: list[Tensor] = []
    for number, step in reversed(list(enumerate(plan))):
        at = fine.nonzero().squeeze(1)
        if at.numel() == 0:
            break
        now = y[at]
        solved = solve(
            step, velocity, now, start_of(step, now, [slope[at] for slope in slopes]),
            None if condition is None else condition[at], tolerance=tolerance, max_iterations=most,
        )  # fmt: skip
        rates[number, at] = solved.contraction
        slope = torch.zeros_like(y)
        slope[at] = (step.a * solved.y - now) / step.h
        slopes = [slope, *slopes[:1]]
        y[at] = solved.y
        fine[at] = solved.converged
    calls = velocity.calls
    return Inverse(y, fine, rates, Forward.of(plan, y)(velocity, y, condition), calls)


def solve(
    step: FlowStep,
    velocity: Velocity,
    x: Tensor,
    guess: Tensor,
    condition: Tensor | None,
    *,
    tolerance: float,
    max_iterations: int,
) -> Solved:
    """y with step(y) = x. x, guess: (B, ...). tolerance: of |g(y) - y| / |g(y)|. max_iterations: at each damping."""
    # What rounding leaves of a fixed point.
    tolerance = max(tolerance, 2.0 * torch.finfo(x.dtype).eps)
    y, batch = guess.clone(), x.shape[0]
    converged = torch.zeros(batch, dtype=torch.bool, device=x.device)
    contraction = torch.full((batch,), float("nan"), dtype=x.dtype, device=x.device)
    scaled = x / step.a
    for damping in DAMPINGS:
        left = (~converged).nonzero().squeeze(1)
        if left.numel() == 0:
            break
        start = guess if damping == 1.0 else scaled
        rows = _Rows(left, scaled[left], start[left], None if condition is None else condition[left])
        for _ in range(max_iterations):
            ended = _iterate(step, velocity, rows, damping, tolerance, y, converged, contraction)
            if ended:
                break
    return Solved(y, converged, contraction)


def _iterate(
    step: FlowStep,
    velocity: Velocity,
    rows: _Rows,
    damping: float,
    tolerance: float,
    y: Tensor,
    converged: Tensor,
    contraction: Tensor,
) -> bool:
    """One evaluation of the rows; true once none is left that could converge."""
    following, residual = fixed_point_update(
        rows.x, psi(step, velocity, rows.y, rows.condition), rows.y, -step.h / step.a
    )
    size = following.flatten(1).norm(dim=1).clamp(min=torch.finfo(following.dtype).tiny)
    _measure(rows, following, size, contraction)
    done = residual <= tolerance * size
    lost = ~torch.isfinite(residual)
    grown = None if rows.last is None else residual > rows.last
    _remember(rows, following, damping, grown)
    rows.last = residual
    ended = done | lost
    # Where rows leave, their iterates are copied out: the one reading of the device an iteration.
    if bool(ended.any()):
        at = rows.index[done]
        y[at], converged[at] = following[done], True
        rows.keep((~ended).nonzero().squeeze(1))
    return rows.index.numel() == 0


def _measure(rows: _Rows, following: Tensor, size: Tensor, contraction: Tensor) -> None:
    """|g(y) - g(y')| / |y - y'| of the last two iterates, at most h L; the largest so far is kept."""
    if not rows.evaluated:
        return
    before, image = rows.evaluated
    moved, answered = ((rows.y - before).flatten(1).norm(dim=1), (following - image).flatten(1).norm(dim=1))
    ratio = torch.where(moved > FLOOR * size, answered / moved, torch.full_like(moved, float("nan")))
    contraction[rows.index] = torch.fmax(contraction[rows.index], ratio)


def _remember(rows: _Rows, following: Tensor, damping: float, grown: Tensor | None) -> None:
    """Take the next iterates, mixed from the last ones; those whose residual grew go on plainly."""
    change, rows.evaluated = following - rows.y, (rows.y, following)
    moved = following if damping == 1.0 else torch.add(rows.y, change, alpha=damping)
    rows.following, rows.residual = [*rows.following[1 - HISTORY :], moved], [*rows.residual[1 - HISTORY :], change]
    if len(rows.following) == 1 or grown is None:
        rows.y = moved
        return
    mixed = anderson_mix(torch.stack(rows.following), torch.stack(rows.residual))
    plain = (grown | ~torch.isfinite(mixed.flatten(1)).all(dim=1)).view(-1, *[1] * (mixed.ndim - 1))
    rows.y = torch.where(plain, moved, mixed)
