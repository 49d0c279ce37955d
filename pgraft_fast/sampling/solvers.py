"""Solvers as tables of coefficients.

Every update x_t -> x_s here is linear in the state, the predicted x_0, the previous x_0 and the noise:

    x_0 = p x_t + q out                      (clipped where asked)
    x_s = a x_t + b x_0 + c x_0_previous + d z

so a solver is a table with a row a step, computed once in float64, and the loop has no arithmetic on the host.

- ddpm: ancestral posterior q(x_s | x_t, x_0) (Ho et al. 2020, arXiv 2006.11239, eq. 7), for any schedule.
- ddim: Song et al. 2021, arXiv 2010.02502, eq. 12; eta = 1 is ddpm, eta = 0 the probability-flow ODE.
- euler: x_s = x_t + (alpha_s - alpha_t) x_0 + (sigma_s - sigma_t) eps: Euler in t for the linear flow, in sigma for
  EDM. It is ddim with eta = 0.
- euler_sde: Euler-Maruyama on the reverse SDE with diffusion g^2 = eta^2 d(sigma^2)/dt, which keeps every marginal
  (Song et al. 2021, arXiv 2011.13456, eq. 6); the last step is noise-free.
- heun: trapezoid of euler (Karras et al. 2022, arXiv 2206.00364, algorithm 1); last step euler.
- dpmpp_2m: DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095, algorithm 2); first and last step of first order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule, x_0_coefficients
from pgraft_fast.errors import InputError

SOLVERS = ("ddpm", "ddim", "euler", "euler_sde", "heun", "dpmpp_2m")


@dataclass(frozen=True)
class Step:
    """One row of the table, as floats. `t`, `s`: times before and after. `second`: Heun's second stage."""

    t: float
    s: float
    p: float
    q: float
    a: float
    b: float
    c: float
    d: float
    second: "SecondStage | None" = None


@dataclass(frozen=True)
class SecondStage:
    """Heun: x_0' = p x_e + q out' at (x_e, s); x_s = x x_t + e x_e + b x_0'."""

    p: float
    q: float
    x: float
    e: float
    b: float


def make_steps(
    schedule: Schedule,
    grid: Tensor,
    solver: str,
    parameterization: str,
    eta: float | None = None,
) -> list[Step]:
    """The table of a solver on falling times grid (S + 1,). eta: noise of ddim (default 0) and euler_sde (1)."""
    if solver not in SOLVERS:
        raise InputError(f"solver={solver!r} is unknown; known: {', '.join(SOLVERS)}")
    if eta is not None and solver not in ("ddim", "euler_sde"):
        raise InputError(f"eta={eta} has no meaning for solver={solver!r}; it belongs to ddim and euler_sde")
    if eta is not None and eta < 0:
        raise InputError(f"eta={eta}: the noise scale cannot be negative")
    grid = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
    if grid.ndim != 1 or grid.numel() < 2 or bool((grid.diff() >= 0).any()) or grid[0] > 1 or grid[-1] < 0:
        raise InputError("times must fall strictly, from at most 1 to at least 0")
    alpha, sigma = schedule.alpha_sigma(grid)
    levels = _Levels(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    a, b, c, d = _COEFFICIENTS[solver](levels, eta)
    p, q = x_0_coefficients(schedule, grid[:-1], parameterization)
    columns = torch.stack((grid[:-1], grid[1:], p, q, a, b, c, d), dim=1)
    steps = [Step(*row) for row in columns.tolist()]
    if solver == "heun":
        steps = _with_second_stage(steps, schedule, levels, parameterization)
    return steps


@dataclass(frozen=True)
class Table:
    """Steps as rows of `ops.solver_step`, one a network evaluation: Heun's steps have two.

    coefficients: (R, 8) float64. time: (R,) float64, where the network is asked. of_step: the rows of each step.
    multistep: whether a step uses the x_0 before. The noise of step k of the grid has number k + 1.
    """

    coefficients: Tensor
    time: Tensor
    of_step: list[range]
    multistep: bool


def make_table(steps: list[Step]) -> Table:
    """The rows of these steps."""
    rows: list[list[float]] = []
    times, of_step = [], []
    for number, step in enumerate(steps, start=1):
        first = len(rows)
        rows.append([step.p, step.q, step.a, step.b, step.c, step.d, number, 0.0])
        times.append(step.t)
        if step.second is not None:
            second = step.second
            # The state is that of the first stage, the previous one x_t.
            rows.append([second.p, second.q, second.e, second.b, second.x, 0.0, number, 0.0])
            times.append(step.s)
        of_step.append(range(first, len(rows)))
    multistep = any(step.c != 0.0 for step in steps)
    double = torch.float64
    return Table(torch.tensor(rows, dtype=double), torch.tensor(times, dtype=double), of_step, multistep)


def model_evaluations(steps: list[Step]) -> int:
    """Network evaluations that a trajectory of these steps needs."""
    return sum(1 if step.second is None else 2 for step in steps)


@dataclass(frozen=True)
class _Levels:
    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    sigma_s: Tensor

    def posterior_std(self) -> Tensor:
        """Standard deviation of q(x_s | x_t, x_0): sqrt(sigma_s^2 / sigma_t^2 (sigma_t^2 - a^2 sigma_s^2))."""
        ratio = self.alpha_t / self.alpha_s
        step_variance = self.sigma_t**2 - (ratio * self.sigma_s) ** 2
        return self.sigma_s / self.sigma_t * step_variance.clamp(min=0.0).sqrt()


_Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]


def _ddim(levels: _Levels, eta: float | None) -> _Coefficients:
    d = (eta or 0.0) * levels.posterior_std()
    a = (levels.sigma_s**2 - d**2).clamp(min=0.0).sqrt() / levels.sigma_t
    return a, levels.alpha_s - a * levels.alpha_t, torch.zeros_like(a), d


def _ddpm(levels: _Levels, eta: float | None) -> _Coefficients:
    return _ddim(levels, 1.0)


def _euler(levels: _Levels, eta: float | None) -> _Coefficients:
    return _ddim(levels, 0.0)


def _euler_sde(levels: _Levels, eta: float | None) -> _Coefficients:
    scale = 1.0 if eta is None else eta
    variance = scale**2 * (levels.sigma_t**2 - levels.sigma_s**2)
    variance = torch.where(levels.sigma_s > 0, variance, torch.zeros_like(variance))
    # ODE step plus half the variance times the score -eps / sigma_t.
    eps_weight = levels.sigma_s - levels.sigma_t - 0.5 * variance / levels.sigma_t
    a = 1.0 + eps_weight / levels.sigma_t
    b = levels.alpha_s - levels.alpha_t - eps_weight * levels.alpha_t / levels.sigma_t
    return a, b, torch.zeros_like(a), variance.sqrt()


def _dpmpp_2m(levels: _Levels, eta: float | None) -> _Coefficients:
    half_logsnr_t = levels.alpha_t.log() - levels.sigma_t.log()
    half_logsnr_s = levels.alpha_s.log() - levels.sigma_s.log()
    h = half_logsnr_s - half_logsnr_t
    a = levels.sigma_s / levels.sigma_t
    gain = levels.alpha_s - a * levels.alpha_t
    extrapolation = torch.zeros_like(h)
    extrapolation[1:] = h[1:] / (2.0 * h[:-1])
    # The step to sigma = 0 has infinite h; after a start at alpha = 0 the ratio is 0 already.
    extrapolation[~torch.isfinite(extrapolation)] = 0.0
    return a, gain * (1.0 + extrapolation), -gain * extrapolation, torch.zeros_like(a)


_COEFFICIENTS = {
    "ddpm": _ddpm,
    "ddim": _ddim,
    "euler": _euler,
    "euler_sde": _euler_sde,
    "heun": _euler,
    "dpmpp_2m": _dpmpp_2m,
}


def _with_second_stage(steps: list[Step], schedule: Schedule, levels: _Levels, parameterization: str) -> list[Step]:
    out = []
    for index, step in enumerate(steps):
        alpha_s, sigma_s = float(levels.alpha_s[index]), float(levels.sigma_s[index])
        if sigma_s == 0.0:
            out.append(step)
            continue
        p, q = (float(value) for value in x_0_coefficients(schedule, step.s, parameterization))
        d_alpha = alpha_s - float(levels.alpha_t[index])
        d_sigma = sigma_s - float(levels.sigma_t[index])
        slope = d_sigma / sigma_s
        second = SecondStage(p=p, q=q, x=0.5, e=0.5 + 0.5 * slope, b=0.5 * (d_alpha - slope * alpha_s))
        out.append(Step(step.t, step.s, step.p, step.q, step.a, step.b, step.c, step.d, second))
    return out
