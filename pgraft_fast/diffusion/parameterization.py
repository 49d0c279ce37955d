"""What a network predicts, and the one place where predictions are converted.

Every parameterization is linear in the state and the output, so a conversion is two numbers per noise level:

    x_0 = p x_t + q out        (`x_0_coefficients`)
    eps = (x_t - alpha x_0) / sigma
    out = c x_0 + d eps        (`target_coefficients`)

epsilon: out = eps.  x_0: out = x_0.  v: out = alpha eps - sigma x_0 (Salimans and Ho 2022, arXiv 2202.00512).
velocity: out = dx_t/dt = alpha' x_0 + sigma' eps (Lipman et al. 2023, arXiv 2210.02747).
"""

import torch
from torch import Tensor

from pgraft_fast.diffusion.schedule import Schedule
from pgraft_fast.errors import InputError

PARAMETERIZATIONS = ("epsilon", "v", "x_0", "velocity")


def check_parameterization(name: str) -> str:
    """One of epsilon, v, x_0, velocity."""
    if name not in PARAMETERIZATIONS:
        raise InputError(f"parameterization={name!r} is unknown; known: {', '.join(PARAMETERIZATIONS)}")
    return name


def target_coefficients(schedule: Schedule, t: float | Tensor, parameterization: str) -> tuple[Tensor, Tensor]:
    """(c, d) with out = c x_0 + d eps. t: any shape; both in t's dtype (float64 for a float)."""
    alpha, sigma = schedule.alpha_sigma(t)
    match check_parameterization(parameterization):
        case "epsilon":
            return torch.zeros_like(alpha), torch.ones_like(sigma)
        case "x_0":
            return torch.ones_like(alpha), torch.zeros_like(sigma)
        case "v":
            return -sigma, alpha
        case _:
            return schedule.derivatives(t)


def x_0_coefficients(schedule: Schedule, t: float | Tensor, parameterization: str) -> tuple[Tensor, Tensor]:
    """(p, q) with x_0 = p x_t + q out, from x_t = alpha x_0 + sigma eps and out = c x_0 + d eps:

    p = d / (d alpha - c sigma), q = -sigma / (d alpha - c sigma).
    """
    alpha, sigma = schedule.alpha_sigma(t)
    c, d = target_coefficients(schedule, t, parameterization)
    determinant = d * alpha - c * sigma
    return d / determinant, -sigma / determinant


def convert(out: Tensor, x_t: Tensor, schedule: Schedule, t: float | Tensor, source: str, target: str) -> Tensor:
    """A prediction in one parameterization given in another.

    out, x_t: (B, ...). t: float or (B,), 0 < t <= 1. Raises InputError for unknown names.
    """
    p, q = (_rows(value, x_t) for value in x_0_coefficients(schedule, t, source))
    x_0 = p * x_t + q * out
    if target == "x_0":
        return x_0
    alpha, sigma = (_rows(value, x_t) for value in schedule.alpha_sigma(t))
    c, d = (_rows(value, x_t) for value in target_coefficients(schedule, t, target))
    eps = (x_t - alpha * x_0) / sigma
    return c * x_0 + d * eps


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """Shape (B,) or () to broadcast over (B, ...)."""
    value = value.to(device=like.device, dtype=like.dtype)
    return value.view(-1, *([1] * (like.ndim - 1))) if value.ndim else value
