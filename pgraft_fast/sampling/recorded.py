"""Recorded trajectories: every state of a stochastic sampler and the log-density of the step that led to it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.ops import COLUMNS, weighted_mse
from pgraft_fast.ops.checks import over_samples, wide
from pgraft_fast.sampling.answers import first_states
from pgraft_fast.sampling.guidance import Guided, Model, calls_of
from pgraft_fast.sampling.loop import Loop, Seen
from pgraft_fast.sampling.rollout import rows_of
from pgraft_fast.sampling.solvers import make_steps, make_table
from pgraft_fast.threads import team_of

RECORDED_SOLVERS = ("ddpm", "ddim", "euler_sde")
_EXACT = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Recorded:
    """n trajectories of S steps, in the order of `sample_id`.

    states: (S + 1, n, *shape), from noise to data; step k leads from states[k] to states[k + 1].
    log_prob: (S, n) float32 (float64 for float64 states): log p(states[k + 1] | states[k]) under the model that drew
    it, summed over the elements; 0 where drawn is false.
    drawn: (S,) bool on the CPU: false for steps without noise, which have no density (the last one).
    table: (S, 8) float64 rows of `ops.COLUMNS`. times: (S,) float64, where the model is asked.
    x_0: (n, *shape) final samples in the dtype of the computation. calls_a_sample: forward passes of the model that
    one call costs a sample, 2 with guidance. model_calls: of all samples and steps.
    """

    states: Tensor
    log_prob: Tensor
    drawn: Tensor
    table: Tensor
    times: Tensor
    sample_id: Tensor
    x_0: Tensor
    calls_a_sample: int
    model_calls: int


def record(
    model: Model,
    schedule: Schedule,
    *,
    shape: Sequence[int],
    sample_ids: Tensor,
    steps: int = 50,
    solver: str = "ddpm",
    parameterization: str = "epsilon",
    seed: int = 0,
    condition: Tensor | None = None,
    eta: float | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Recorded:
    """Sample whole trajectories as `rollout` does, bit for bit, and keep all that a policy gradient needs.

    Arguments as in `rollout`. solver: "ddpm", "euler_sde" or "ddim" with eta > 0. sample_ids: (n,) int64.
    state_dtype: dtype in which the states are kept. One narrower than float32 halves the memory; the trajectory
    then goes on from the rounded state, so that what is kept is what the model saw, and no longer equals rollout's.
    Where states are narrower than float32, by dtype or state_dtype, log_prob is that of the rounded state instead of
    the noise that was drawn: in bfloat16 the two differ by more than a usual clip range.

    Raises InputError; a solver that draws no noise has no densities and is refused.
    """
    ids = torch.as_tensor(sample_ids)
    if ids.ndim != 1 or ids.numel() == 0 or ids.is_floating_point():
        raise InputError("sample_ids must be a 1-D tensor of integers with at least one entry")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: it must be at least 1")
    if solver not in RECORDED_SOLVERS or (eta == 0.0 if solver == "euler_sde" else solver == "ddim" and not eta):
        raise InputError(
            f"solver={solver!r} with eta={eta} draws no noise, so its steps have no log-probability; "
            "use ddpm, euler_sde, or ddim with eta above 0"
        )
    grid = schedule.grid(steps, parameterization)
    rows = make_table(make_steps(schedule, grid, solver, parameterization, eta))
    if not bool((rows.coefficients[:, COLUMNS.index("d")] != 0).any()):
        raise InputError(f"steps={steps}: the last step of {solver} draws no noise, so at least 2 are needed")
    ids = ids.to(device=device, dtype=torch.int64)
    condition = rows_of(condition, ids)
    kept_dtype = dtype if state_dtype is None else state_dtype
    kept = torch.empty((steps + 1, ids.numel(), *shape), dtype=kept_dtype, device=ids.device)
    wide_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    log_prob = torch.empty((steps, ids.numel()), dtype=wide_dtype, device=ids.device)
    x_0 = torch.empty(kept.shape[1:], dtype=dtype, device=ids.device)
    # As in `rollout`, which gives the same bits.
    team = team_of(model, min(batch_size, ids.numel()), tuple(shape), ids.device)
    loop = Loop(rows, seed, dtype, log_prob=True, check=team.check)
    run = _Recording(model, loop, float(schedule.sigma(grid[0])))

    def part(of: slice) -> int:
        x_0[of], calls = run.batch(ids[of], None if condition is None else condition[of], kept[:, of], log_prob[:, of])
        return calls

    total = 0
    for _, done in team.batches(ids.numel(), batch_size, part):
        calls = sum(done)
        total += calls
        if on_batch is not None:
            on_batch(calls)
    return Recorded(
        states=kept,
        log_prob=log_prob,
        drawn=rows.coefficients[:, COLUMNS.index("d")] != 0,
        table=rows.coefficients,
        times=rows.time,
        sample_id=ids,
        x_0=x_0,
        calls_a_sample=total // (steps * ids.numel()),
        model_calls=total,
    )


@dataclass(frozen=True)
class _Recording:
    """Batches of trajectories of which all states are kept."""

    model: Model
    loop: Loop
    initial_scale: float

    @torch.no_grad()
    def batch(self, ids: Tensor, condition: Tensor | None, kept: Tensor, log_prob: Tensor) -> tuple[Tensor, int]:
        """Fill kept (S + 1, B, *shape) and log_prob (S, B). Returns x_0 and the model calls."""
        loop, table = self.loop, self.loop.rows.coefficients
        rounded = not (kept.dtype in _EXACT and loop.dtype in _EXACT)
        density = density_table(table, log_prob.dtype, ids.device) if rounded else None
        final: list[Tensor] = []
        calls: list[int] = []

        def keep(step: int, seen: Seen) -> Tensor:
            x, answer, done = seen
            x_s, value = _kept(kept[step + 1], done.x_s), done.log_prob
            if density is not None and table[step, COLUMNS.index("d")] != 0:
                value = step_log_prob(combined(*answer), x, x_s, density[step].expand(x.shape[0], -1))
            assert value is not None
            log_prob[step] = value
            calls.append(x.shape[0] * (calls_of(self.model) if answer.out_null is None else 2))
            final[:] = [done.x_s]
            return x_s

        first = first_states(self.model, loop.seed, ids, condition, kept.shape[2:], self.initial_scale, loop.dtype)
        inputs = loop.inputs(ids, condition)
        loop.run(self.model, 0, len(loop.rows.of_step), _kept(kept[0], first), None, inputs, keep)
        return final[0], sum(calls)


def _kept(place: Tensor, x: Tensor) -> Tensor:
    """Write a state to its place. Returns it as the trajectory goes on from it."""
    place.copy_(x)
    return x if place.dtype in _EXACT or place.dtype is x.dtype else place.to(x.dtype)


def combined(out: Tensor, out_null: Tensor | None, scale: float) -> Tensor:
    """What `solver_step` makes of a model's answers: with guidance in float32, with gradients through both."""
    if out_null is None:
        return out
    return Guided(out.to(wide(out)), out_null.to(wide(out)), scale).combined()


def density_table(table: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(S, 4) rows (b q / d, a + b p, 1 / d, log d) for `step_log_prob`; not finite where d = 0. table: (S, 8).

    Taken from the coefficients as the solver's step rounds them.
    """
    p, q, a, b, _, d = table.to(dtype).to(torch.float64)[:, : COLUMNS.index("noise")].unbind(dim=1)
    return torch.stack((b * q / d, a + b * p, 1.0 / d, d.log()), dim=1).to(device, dtype)


def step_log_prob(out: Tensor, x_t: Tensor, x_s: Tensor, coefficients: Tensor) -> Tensor:
    """Log-density of steps x_t -> x_s under a model that answered `out`, differentiable in out.

    x_s is normal with mean a x_t + b (p x_t + q out) and deviation d in each of n elements:

        log p = -|w out - (x_s - (a + b p) x_t) / d|^2 / 2 - n (log d + log(2 pi) / 2),    w = b q / d

    which is one fused pass forward and one backward. out, x_t, x_s: (B, ...), any floating dtypes, out after guidance.
    coefficients: (B, 4) rows of `density_table`, float32 (float64 for float64). Returns (B,) float32, summed over n.
    Black et al. 2023, arXiv 2305.13301, section 4.3.
    """
    dtype, size = wide(out), x_t[:1].numel()
    weight, slope, precision, log_spread = coefficients.to(dtype).unbind(dim=1)
    with torch.no_grad():
        target = x_s.to(dtype) - over_samples(slope, x_t) * x_t.to(dtype)
        target = target.mul_(over_samples(precision, x_t))
    error = weighted_mse(out, target, weight.contiguous())
    return -size * (0.5 * error + log_spread + 0.5 * math.log(2.0 * math.pi))
