"""The noise laws behind `Schedule`: alpha(t), sigma(t), their slopes and their inverse, in float64.

Every method takes and returns float64 tensors of any shape. Sources are named at the constructors of `Schedule`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.errors import InputError


@dataclass(frozen=True)
class NoiseLaw(ABC):
    """One family of schedules; its parameters are the fields of a frozen dataclass."""

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def t_of_logsnr(self, logsnr: Tensor) -> Tensor: ...

    def t_of_share(self, share: Tensor) -> Tensor:
        """Time at which this share of a trajectory's equal steps is left."""
        return share

    def times(self, steps: int) -> Tensor:
        """(steps + 1,) from noise to data."""
        return self.t_of_share(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64))


class _VariancePreserving(NoiseLaw):
    """alpha = exp(-B/2) with B(t) the integral of beta."""

    @abstractmethod
    def _integral(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _beta(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _t_of_integral(self, integral: Tensor) -> Tensor: ...

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = self._integral(t)
        return torch.exp(-0.5 * integral), torch.sqrt(-torch.expm1(-integral))

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha_sigma(t)
        half = 0.5 * self._beta(t) * alpha
        return -half, half * alpha / sigma

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        # alpha^2 = exp(-B) = sigmoid(logsnr); logaddexp has no threshold, unlike softplus.
        return self._t_of_integral(torch.logaddexp(-logsnr, torch.zeros_like(logsnr)))


@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    beta_min: float
    beta_max: float

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _t_of_integral(self, integral: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 2.0 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2.0 * slope * integral))


@dataclass(frozen=True)
class VPScaledLinear(_VariancePreserving):
    beta_min: float
    beta_max: float

    def _integral(self, t: Tensor) -> Tensor:
        root, slope = self._root_and_slope()
        return t * (root**2 + slope * t * (root + slope * t / 3.0))

    def _beta(self, t: Tensor) -> Tensor:
        root, slope = self._root_and_slope()
        return (root + slope * t) ** 2

    def _t_of_integral(self, integral: Tensor) -> Tensor:
        root, slope = self._root_and_slope()
        return ((root**3 + 3.0 * slope * integral).pow(1.0 / 3.0) - root) / slope

    def _root_and_slope(self) -> tuple[float, float]:
        root = math.sqrt(self.beta_min)
        return root, math.sqrt(self.beta_max) - root


@dataclass(frozen=True)
class Cosine(NoiseLaw):
    offset: float
    t_max: float

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        start = self._angle(torch.zeros_like(t))
        ratio = torch.cos(self._angle(t)) / torch.cos(start)
        # sin(u - u_0) sin(u + u_0) = cos(u_0)^2 - cos(u)^2, without cancellation near t = 0.
        sine_product = torch.sin(self._angle(t) - start) * torch.sin(self._angle(t) + start)
        return ratio, torch.sqrt(sine_product) / torch.cos(start)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha_sigma(t)
        speed = 0.5 * math.pi * self.t_max / (1.0 + self.offset)
        alpha_dot = -speed * torch.sin(self._angle(t)) / torch.cos(self._angle(torch.zeros_like(t)))
        return alpha_dot, -alpha * alpha_dot / sigma

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        start = self._angle(torch.zeros_like(logsnr))
        angle = torch.acos(torch.sigmoid(logsnr).sqrt() * torch.cos(start))
        return (angle / (0.5 * math.pi) * (1.0 + self.offset) - self.offset) / self.t_max

    def _angle(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * (t * self.t_max + self.offset) / (1.0 + self.offset)


@dataclass(frozen=True)
class Edm(NoiseLaw):
    sigma_min: float
    sigma_max: float
    rho: float

    _T_MIN = 1e-3

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._ends()
        share = (t - self._T_MIN) / (1.0 - self._T_MIN)
        karras = (low + share.clamp(min=0.0) * (high - low)).pow(self.rho)
        sigma = torch.where(t < self._T_MIN, self.sigma_min * t / self._T_MIN, karras)
        return torch.ones_like(t), sigma

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._ends()
        speed = (high - low) / (1.0 - self._T_MIN)
        root = low + (t - self._T_MIN).clamp(min=0.0) * speed
        karras = self.rho * speed * root.pow(self.rho - 1.0)
        sigma_dot = torch.where(t < self._T_MIN, torch.full_like(t, self.sigma_min / self._T_MIN), karras)
        return torch.zeros_like(t), sigma_dot

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        low, high = self._ends()
        sigma = torch.exp(-0.5 * logsnr)
        share = (sigma.pow(1.0 / self.rho) - low) / (high - low)
        karras = self._T_MIN + share * (1.0 - self._T_MIN)
        return torch.where(sigma < self.sigma_min, self._T_MIN * sigma / self.sigma_min, karras)

    def times(self, steps: int) -> Tensor:
        # Karras et al.'s steps: sigma_max ... sigma_min, then 0.
        t = torch.linspace(1.0, self._T_MIN, steps, dtype=torch.float64)
        return torch.cat((t, torch.zeros(1, dtype=torch.float64)))

    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1.0 / self.rho), self.sigma_max ** (1.0 / self.rho)


@dataclass(frozen=True)
class LinearFlow(NoiseLaw):
    shift: float

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 - t, t.clone()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(t, -1.0), torch.ones_like(t)

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * logsnr)

    def t_of_share(self, share: Tensor) -> Tensor:
        return self.shift * share / (1.0 + (self.shift - 1.0) * share)


@dataclass(frozen=True)
class Table(NoiseLaw):
    angles: tuple[float, ...]

    @staticmethod
    def of_alphas_cumprod(alphas_cumprod: Tensor) -> "Table":
        """From alpha^2 at t = 1/T ... 1, see `Schedule.from_alphas_cumprod`."""
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
        if table.ndim != 1 or table.numel() < 2 or bool((table.diff() >= 0).any()) or table[-1] < 0:
            raise InputError("alphas_cumprod must be a falling 1-D table of numbers in [0, 1)")
        return Table(tuple(torch.atan2((1.0 - table).sqrt(), table.sqrt()).tolist()))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle, _ = self._angle(t)
        return torch.cos(angle), torch.sin(angle)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle, speed = self._angle(t)
        return -speed * torch.sin(angle), speed * torch.cos(angle)

    def _angle(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The angle and its slope in t."""
        table = self._table(t)
        position = t * (table.numel() - 1)
        index = position.floor().long().clamp(0, table.numel() - 2)
        low = table.take(index)
        step = table.take(index + 1) - low
        return low + (position - index) * step, step * (table.numel() - 1)

    def t_of_logsnr(self, logsnr: Tensor) -> Tensor:
        table = self._table(logsnr)
        angle = torch.atan(torch.exp(-0.5 * logsnr))
        index = (torch.searchsorted(table, angle) - 1).clamp(0, table.numel() - 2)
        position = index + (angle - table[index]) / (table[index + 1] - table[index])
        return position / (table.numel() - 1)

    def _table(self, like: Tensor) -> Tensor:
        return _on_device(self.angles, like.device)


_TABLES: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}


def _on_device(angles: tuple[float, ...], device: torch.device) -> Tensor:
    """Brought once: a copy from the host makes the device wait, and cannot be captured."""
    table = _TABLES.get((angles, device))
    if table is None:
        table = torch.tensor((0.0, *angles), dtype=torch.float64, device=device)
        if type(table) is Tensor:
            _TABLES[angles, device] = table
    return table
