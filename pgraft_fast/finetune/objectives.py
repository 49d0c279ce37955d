"""Training objectives of P-GRAFT and GRAFT: regressions on kept states above the cut."""

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule, check_cut, target_coefficients
from pgraft_fast.errors import InputError
from pgraft_fast.sampling import Model

OBJECTIVES = ("state", "clean")


def pgraft_loss(
    model: Model,
    schedule: Schedule,
    x_cut: Tensor,
    cut: float | None = None,
    objective: str = "state",
    parameterization: str = "epsilon",
    *,
    t_cut: float | None = None,
    condition: Tensor | None = None,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Loss of a batch of kept rows, at noise levels in (t_cut, 1].

    state: x_cut holds the kept states at the cut. With a = alpha_s / alpha_cut, S2 = sigma_s^2 - a^2 sigma_cut^2 and
    x_s = a x_cut + sqrt(S2) e, the regression target of eps is sigma_s (x_s - a x_cut) / S2 with weight
    S2 / sigma_s^2 (denoising score matching from the cut). In the model's own parameterization the target is
    c x_0* + d eps* with x_0* = x_cut / alpha_cut - a sigma_cut^2 e / (alpha_cut sqrt(S2)).
    clean: x_cut holds the kept x_0; the ordinary loss |model - (c x_0 + d e)|^2, with times above the cut.
    At cut 0 (GRAFT) both are the ordinary loss.

    x_cut: (B, ...). cut: share of the reference steps in [0, 1), or t_cut: the exact time of the states
    (`Rollout.t_cut`). t: (B,) times, default uniform on (t_cut, 1]. noise: shape of x_cut, default torch.randn.
    reduction: "mean" over everything, or "none" for (B,) means over each sample. Raises InputError.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"objective={objective!r} is unknown; known: {', '.join(OBJECTIVES)}")
    if reduction not in ("mean", "none"):
        raise InputError(f"reduction={reduction!r} is unknown; known: mean, none")
    start = _start_time(schedule, cut, t_cut)
    if t is None:
        t = 1.0 - torch.rand(x_cut.shape[0], device=x_cut.device, dtype=torch.float64) * (1.0 - start)
    if noise is None:
        noise = torch.randn_like(x_cut)
    t = t.to(torch.float64)
    of_x, of_noise, target_x, target_noise, root_weight = (
        value.to(x_cut.dtype).view(-1, *([1] * (x_cut.ndim - 1)))
        for value in _coefficients(schedule, t, start if objective == "state" else 0.0, parameterization)
    )
    x_s = of_x * x_cut + of_noise * noise
    times = t.to(x_cut.dtype)
    out = model(x_s, times) if condition is None else model(x_s, times, condition)
    if out.shape != x_cut.shape:
        raise InputError(f"the model returned {tuple(out.shape)} for a state of shape {tuple(x_cut.shape)}")
    error = root_weight * out - (target_x * x_cut + target_noise * noise)
    per_sample = error.flatten(1).square().mean(dim=1)
    return per_sample.mean() if reduction == "mean" else per_sample


def _start_time(schedule: Schedule, cut: float | None, t_cut: float | None) -> float:
    if cut is not None and t_cut is None:
        return float(schedule.t_of_share(check_cut(cut)))
    if cut is not None or t_cut is None:
        raise InputError("give cut (a share of the steps) or t_cut (a time), one of the two")
    if not 0.0 <= t_cut < 1.0:
        raise InputError(f"t_cut={t_cut}: the time of the cut lies in [0, 1)")
    return t_cut


def _coefficients(
    schedule: Schedule, t: Tensor, start: float, parameterization: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x_s = of_x x + of_noise e; sqrt(weight) target = target_x x + target_noise e; sqrt(weight). All (B,)."""
    alpha_cut, sigma_cut = schedule.alpha_sigma(torch.full_like(t, start))
    alpha, sigma = schedule.alpha_sigma(t)
    c, d = target_coefficients(schedule, t, parameterization)
    a = alpha / alpha_cut
    root = (sigma**2 - (a * sigma_cut) ** 2).clamp(min=0.0).sqrt()
    root_weight = root / sigma
    # Multiplied through by sqrt(weight), the terms in 1 / sqrt(S2) cancel: nothing blows up at the cut.
    target_x = root_weight * c / alpha_cut
    target_noise = d - c * a * sigma_cut**2 / (alpha_cut * sigma)
    return a, root, target_x, target_noise, root_weight
