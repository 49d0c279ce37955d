"""Training objectives of P-GRAFT and GRAFT: regressions on kept states above the cut."""

import torch
from torch import Tensor

from pgraft_fast.diffusion import NoiseKey, Schedule, check_cut, target_coefficients
from pgraft_fast.errors import InputError
from pgraft_fast.ops import partial_noise, weighted_mse
from pgraft_fast.sampling import Guided, Model

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
    noise: Tensor | NoiseKey | None = None,
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
    (`Rollout.t_cut`). t: (B,) times, default uniform on (t_cut, 1]. noise: shape of x_cut, or the key of
    reproducible noise, default torch.randn. No gradient flows into x_cut and noise.
    reduction: "mean" over everything, or "none" for (B,) means over each sample. Raises InputError.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"objective={objective!r} is unknown; known: {', '.join(OBJECTIVES)}")
    if reduction not in ("mean", "none"):
        raise InputError(f"reduction={reduction!r} is unknown; known: mean, none")
    start = _start_time(schedule, cut, t_cut)
    if t is None:
        t = 1.0 - torch.rand(x_cut.shape[0], device=x_cut.device, dtype=torch.float64) * (1.0 - start)
    t = t.to(torch.float64)
    origin = start if objective == "state" else 0.0
    alpha_cut, sigma_cut = (float(value) for value in schedule.alpha_sigma(origin))
    levels = torch.stack((*schedule.alpha_sigma(t), *target_coefficients(schedule, t, parameterization)), dim=1)
    if isinstance(noise, NoiseKey):
        x_s, target, weight = partial_noise(
            x_cut.detach(), levels, alpha_cut, sigma_cut,
            sample_id=noise.sample_id, step=noise.step(), seed=noise.seed,
        )  # fmt: skip
    else:
        noise = torch.randn_like(x_cut) if noise is None else noise
        x_s, target, weight = partial_noise(x_cut.detach(), levels, alpha_cut, sigma_cut, noise=noise)
    times = t.to(x_cut.dtype)
    out = model(x_s, times) if condition is None else model(x_s, times, condition)
    if isinstance(out, Guided):
        out = out.combined()
    if out.shape != x_cut.shape:
        raise InputError(f"the model returned {tuple(out.shape)} for a state of shape {tuple(x_cut.shape)}")
    per_sample = weighted_mse(out, target, weight)
    return per_sample.mean() if reduction == "mean" else per_sample


def _start_time(schedule: Schedule, cut: float | None, t_cut: float | None) -> float:
    if cut is not None and t_cut is None:
        return float(schedule.t_of_share(check_cut(cut)))
    if cut is not None or t_cut is None:
        raise InputError("give cut (a share of the steps) or t_cut (a time), one of the two")
    if not 0.0 <= t_cut < 1.0:
        raise InputError(f"t_cut={t_cut}: the time of the cut lies in [0, 1)")
    return t_cut
