"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps with t = 1 pure noise and t = 0 data."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.diffusion.from_diffusers import noise_law_from_diffusers
from pgraft_fast.diffusion.noise_laws import Cosine, Edm, LinearFlow, NoiseLaw, Table, VPLinear, VPScaledLinear
from pgraft_fast.errors import InputError

# Below this log-SNR an epsilon prediction says nothing of x_0; sampling with it starts there instead of at
# alpha = 0. It is where the linear schedule of DDPM starts, too (alpha / sigma = 0.0064).
EPSILON_MIN_LOGSNR = -10.5


@dataclass(frozen=True)
class Schedule:
    """A noise schedule. Build one with `Schedule.linear_flow()` and its siblings.

    `alpha`, `sigma` and `logsnr` = log(alpha^2 / sigma^2) take a float or a tensor of times in [0, 1], compute
    in float64 and return a tensor in the dtype of a floating-point input tensor, else float64. begin: share of the
    sampling steps that are made; below 1 where trajectories start from a noised picture, see `starting_at`.
    """

    law: NoiseLaw
    begin: float = 1.0

    def alpha_sigma(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Both coefficients at once."""
        t, dtype = _float64(t)
        alpha, sigma = self.law.alpha_sigma(t)
        return alpha.to(dtype), sigma.to(dtype)

    def alpha(self, t: float | Tensor) -> Tensor:
        """Scale of the data at time t."""
        return self.alpha_sigma(t)[0]

    def sigma(self, t: float | Tensor) -> Tensor:
        """Standard deviation of the noise at time t."""
        return self.alpha_sigma(t)[1]

    def logsnr(self, t: float | Tensor) -> Tensor:
        """log(alpha^2 / sigma^2): +inf at t = 0, falling with t."""
        t, dtype = _float64(t)
        alpha, sigma = self.law.alpha_sigma(t)
        return (2.0 * (alpha.log() - sigma.log())).to(dtype)

    def t_of_logsnr(self, logsnr: float | Tensor) -> Tensor:
        """The time at which the schedule has this log-SNR; clamped to [0, 1]."""
        logsnr, dtype = _float64(logsnr)
        return self.law.t_of_logsnr(logsnr).clamp(0.0, 1.0).to(dtype)

    def derivatives(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt). A variance-preserving sigma has an infinite slope at t = 0."""
        t, dtype = _float64(t)
        alpha_dot, sigma_dot = self.law.derivatives(t)
        return alpha_dot.to(dtype), sigma_dot.to(dtype)

    def t_of_share(self, share: float | Tensor) -> Tensor:
        """The time at which this share of equal sampling steps is left: 0.25 -> where the last quarter starts."""
        share, dtype = _float64(share)
        return self.law.t_of_share(share * self.begin).to(dtype)

    @property
    def t_begin(self) -> float:
        """The time at which trajectories start."""
        return float(self.t_of_share(1.0)) if self.begin < 1.0 else 1.0

    def starting_at(self, t: float) -> "Schedule":
        """The same noise law, for trajectories that start at time t: shares count the steps from there."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2.0
            later = float(self.law.t_of_share(torch.tensor(middle, dtype=torch.float64))) > t
            low, high = (low, middle) if later else (middle, high)
        return replace(self, begin=high)

    def cut_logsnr(self, cut: float) -> float:
        """Log-SNR of a cut given as the share of reference steps in [0, 1); +inf for 0 (no cut)."""
        return float(self.logsnr(float(self.t_of_share(check_cut(cut)))))

    def grid(self, steps: int, parameterization: str | None = None) -> Tensor:
        """Times of a trajectory of `steps` steps: (steps + 1,) float64 on the CPU, from noise down to exactly 0.

        Equal shares. Where `parameterization` is epsilon and log-SNR at t = 1 is below -10.5, the noisier half of
        the grid is squeezed to start there.
        """
        if steps < 1:
            raise InputError(f"steps={steps}: a trajectory needs at least 1 step")
        if self.begin < 1.0:
            return self.t_of_share(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64))
        t = self.law.times(steps)
        if parameterization == "epsilon" and float(self.logsnr(1.0)) < EPSILON_MIN_LOGSNR:
            start = float(self.t_of_logsnr(EPSILON_MIN_LOGSNR))
            t = torch.where(t > 0.5, 0.5 + (t - 0.5) * (2.0 * start - 1.0), t)
        return t

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters, JSON-ready; `Schedule.from_dict` reads it back."""
        data = {"name": _NAME_OF[type(self.law)], **asdict(self.law)}
        return data if self.begin == 1.0 else {**data, "begin": self.begin}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Schedule":
        """Inverse of `to_dict`."""
        parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k not in ("name", "begin")}
        name = data.get("name")
        if name not in _LAWS:
            raise InputError(f"schedule name {name!r} is unknown; known: {', '.join(_LAWS)}")
        return Schedule(_LAWS[name](**parameters), float(data.get("begin", 1.0)))

    @staticmethod
    def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> "Schedule":
        """Variance preserving, beta(t) linear (Song et al. 2021, arXiv 2011.13456, eq. 32)."""
        return Schedule(VPLinear(beta_min, beta_max))

    @staticmethod
    def scaled_linear(beta_min: float = 0.85, beta_max: float = 12.0) -> "Schedule":
        """Variance preserving, sqrt(beta(t)) linear, as in Stable Diffusion (1,000 times its per-step betas)."""
        return Schedule(VPScaledLinear(beta_min, beta_max))

    @staticmethod
    def cosine(offset: float = 0.008, t_max: float = 0.999) -> "Schedule":
        """alpha = cos(u(t)) / cos(u(0)), u = (pi/2) (t t_max + offset) / (1 + offset).

        Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17; t_max keeps alpha(1) above 0.
        """
        return Schedule(Cosine(offset, t_max))

    @staticmethod
    def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> "Schedule":
        """alpha = 1, sigma(t)^(1/rho) linear in t (Karras et al. 2022, arXiv 2206.00364, eq. 5).

        Below t = 1e-3, sigma falls linearly from sigma_min to 0, so that t = 0 is data.
        """
        return Schedule(Edm(sigma_min, sigma_max, rho))

    @staticmethod
    def linear_flow(shift: float = 1.0) -> "Schedule":
        """alpha = 1 - t, sigma = t: rectified flow (Liu et al. 2022, arXiv 2209.03003).

        shift moves the sampling steps towards noise, t = shift u / (1 + (shift - 1) u), as in Esser et al. 2024,
        arXiv 2403.03206, eq. 23; the noise law at a given t stays.
        """
        return Schedule(LinearFlow(shift))

    @staticmethod
    def from_alphas_cumprod(alphas_cumprod: Tensor) -> "Schedule":
        """Variance preserving from a table of alpha^2 (T,), noisier with the index; entry i is t = (i + 1) / T.

        Between entries the angle atan2(sigma, alpha) is linear in t.
        """
        return Schedule(Table.of_alphas_cumprod(alphas_cumprod))

    @staticmethod
    def from_diffusers(config: Any, shift: float | None = None) -> "Schedule":
        """The schedule of a diffusers scheduler, of its config, or of the dict in scheduler_config.json.

        shift replaces a flow model's dynamic shift, which depends on the picture's size.
        """
        return Schedule(noise_law_from_diffusers(config, shift))


def check_cut(cut: float) -> float:
    """A cut is a share of the reference model's steps, in [0, 1)."""
    if not 0.0 <= cut < 1.0:
        raise InputError(f"cut={cut}: a cut is the share of steps left to the reference model, in [0, 1)")
    return float(cut)


def _float64(value: float | Tensor) -> tuple[Tensor, torch.dtype]:
    if isinstance(value, Tensor):
        return value.to(torch.float64), value.dtype if value.is_floating_point() else torch.float64
    return torch.tensor(float(value), dtype=torch.float64), torch.float64


_LAWS: dict[str, type[NoiseLaw]] = {
    "vp_linear": VPLinear,
    "scaled_linear": VPScaledLinear,
    "cosine": Cosine,
    "edm": Edm,
    "linear_flow": LinearFlow,
    "table": Table,
}
_NAME_OF = {kind: name for name, kind in _LAWS.items()}
