"""Training objectives of P-GRAFT and GRAFT: regressions on states above the cut."""

import functools

import torch
from torch import Tensor

from pgraft_fast.diffusion import NoiseKey, Schedule, check_cut, target_coefficients
from pgraft_fast.errors import InputError
from pgraft_fast.ops import partial_noise, weighted_mse
from pgraft_fast.ops.checks import over_samples
from pgraft_fast.sampling import Guided, Model

OBJECTIVES = ("state", "clean", "contrast")


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
    frozen: Model | None = None,
    advantage: Tensor | None = None,
    elements: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Loss of a batch of kept rows, at noise levels in (t_cut, 1].

    state: x_cut holds the kept states at the cut. With a = alpha_s / alpha_cut, S2 = sigma_s^2 - a^2 sigma_cut^2 and
    x_s = a x_cut + sqrt(S2) e, the regression target of eps is sigma_s (x_s - a x_cut) / S2 with weight
    S2 / sigma_s^2 (denoising score matching from the cut). In the model's own parameterization the target is
    c x_0* + d eps* with x_0* = x_cut / alpha_cut - a sigma_cut^2 e / (alpha_cut sqrt(S2)).
    clean: x_cut holds the kept x_0; the ordinary loss |model - (c x_0 + d e)|^2, with times above the cut.
    At cut 0 (GRAFT) both are the ordinary loss.
    contrast: x_cut holds states at the cut of accepted and of rejected rows. With the target y and weight of `state`,
    the answer o of the frozen model and the row's advantage A, the target is o + A (y - o). Up to a factor and terms
    without the trained answer n, that is (1 + A')/2 |(1 - b) o + b n - y|^2 + (1 - A')/2 |(1 + b) o - b n - y|^2 with
    A = A'/b (Zheng et al. 2025, arXiv 2509.16117, eq. 5). Where o is the posterior mean of the rows' law and a pass
    takes as many accepted as rejected rows of a prompt with A = +-2 strength (1 - p) (`acceptance_advantages`), the
    optimum is
        n = o + strength w(x_t) (y+ - o),    w = 2 p+ / (p+ + p-),
    y+ the posterior mean of the accepted law, p+ and p- the densities of accepted and rejected states at x_t. w is 1
    towards t = 1, where strength 1 is the accepted law, and at most 2. Where acceptance has nothing to do with the
    rows (all of them accepted, labels drawn at random) n = o, whatever law they were drawn from.

    x_cut: (B, ...). cut: share of the reference steps in [0, 1), or t_cut: the exact time of the states
    (`Rollout.t_cut`). t: (B,) times, default uniform on (t_cut, 1]. noise: shape of x_cut, or the key of
    reproducible noise, default torch.randn. No gradient flows into x_cut and noise.
    frozen, advantage: of contrast; a model, called without gradients, and (B,).
    elements: (B, N) bool of x_cut (B, N, ...), sets of different sizes: the loss of a sample is the mean over the rows
    of its elements, others have no gradient.
    reduction: "mean" over everything, "none" for (B,) means over each sample, or of contrast "parts", (4,): means over
    everything of the loss, of the loss of n = o, of |n - o|^2 and of |y - o|^2, weighted, the last three without
    gradients. Raises InputError.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"objective={objective!r} is unknown; known: {', '.join(OBJECTIVES)}")
    if reduction not in ("mean", "none", "parts"):
        raise InputError(f"reduction={reduction!r} is unknown; known: mean, none, parts")
    if (objective == "contrast") != (frozen is not None and advantage is not None):
        raise InputError(f"objective={objective!r}: frozen and advantage belong to contrast, which needs both")
    if reduction == "parts" and objective != "contrast":
        raise InputError(f"objective={objective!r}: reduction='parts' belongs to contrast")
    start = _start_time(schedule, cut, t_cut)
    if t is None:
        begin = schedule.t_begin
        t = begin - torch.rand(x_cut.shape[0], device=x_cut.device, dtype=torch.float64) * (begin - start)
    t = t.to(torch.float64)
    origin = 0.0 if objective == "clean" else start
    alpha_cut, sigma_cut = _levels_of(schedule, origin)
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
    plain, before = target, None
    if frozen is not None and advantage is not None:
        with torch.no_grad():
            before = over_samples(weight, x_cut) * answer_above(frozen, x_s, times, condition)
            target = (before + over_samples(advantage.to(weight), x_cut) * (target - before)).to(x_cut.dtype)
    out = answer_above(model, x_s, times, condition)
    per_sample = _errors(out, target, weight, elements)
    if reduction == "none":
        return per_sample
    if reduction == "mean" or before is None or advantage is None:
        return per_sample.mean()
    with torch.no_grad():
        change = _errors(out, before, weight, elements)
        spread = _errors(before, plain, torch.ones_like(weight), elements)
        rest = [value.mean() for value in (advantage.square() * spread, change, spread)]
    return torch.stack((per_sample.mean(), *rest))


def _errors(out: Tensor, target: Tensor, weight: Tensor, elements: Tensor | None) -> Tensor:
    """(B,) means of (weight out - target)^2."""
    if elements is None:
        return weighted_mse(out, target, weight)
    return weighted_mse(within(out, elements), within(target, elements), weight) * rows_an_element(elements)


def within(x: Tensor, elements: Tensor) -> Tensor:
    """x (B, N, ...) where there are elements (B, N), else 0."""
    return x.where(elements.view(*elements.shape, *[1] * (x.ndim - 2)), 0.0)


def rows_an_element(elements: Tensor) -> Tensor:
    """(B,) what makes a mean over all rows one over the elements (B, N)."""
    return elements.shape[1] / elements.sum(dim=1).clamp(min=1)


@functools.lru_cache(maxsize=64)
def _levels_of(schedule: Schedule, t: float) -> tuple[float, float]:
    """On the host."""
    alpha, sigma = schedule.alpha_sigma(t)
    return float(alpha), float(sigma)


def answer_above(model: Model, x: Tensor, times: Tensor, condition: Tensor | None) -> Tensor:
    """A model's answer in training, guidance put together. Raises InputError where it has another shape."""
    out = model(x, times) if condition is None else model(x, times, condition)
    if isinstance(out, Guided):
        out = out.combined()
    if out.shape != x.shape:
        raise InputError(f"the model returned {tuple(out.shape)} for a state of shape {tuple(x.shape)}")
    return out


def _start_time(schedule: Schedule, cut: float | None, t_cut: float | None) -> float:
    if cut is not None and t_cut is None:
        return float(schedule.t_of_share(check_cut(cut)))
    if cut is not None or t_cut is None:
        raise InputError("give cut (a share of the steps) or t_cut (a time), one of the two")
    if not 0.0 <= t_cut < 1.0:
        raise InputError(f"t_cut={t_cut}: the time of the cut lies in [0, 1)")
    return t_cut
