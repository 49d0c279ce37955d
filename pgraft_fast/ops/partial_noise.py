"""Noisy states above the cut, their targets and weights, in one pass: the data of the `state` objective.

With a = alpha_s / alpha_cut, S2 = sigma_s^2 - a^2 sigma_cut^2 and e standard normal:

    x_s     = a x_cut + sqrt(S2) e
    weight  = w = sqrt(S2) / sigma_s
    target  = w (c x_0* + d eps*) = (w c / alpha_cut) x_cut + (d - c a sigma_cut^2 / (alpha_cut sigma_s)) e

where out = c x_0 + d eps is the model's parameterization and (x_0*, eps*) solve denoising score matching from the cut.
Multiplied through by w, nothing blows up at the cut. The loss is the mean of (w out - target)^2, see `weighted_mse`.
Source: P-GRAFT, arXiv 2510.02692; denoising score matching, Vincent 2011.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.ops.backend import launcher
from pgraft_fast.ops.checks import check_like, check_no_gradient, check_rows, check_state, over_samples, wide
from pgraft_fast.ops.philox import philox_normal, signed
from pgraft_fast.ops.registration import register, traced


class PartialNoise(NamedTuple):
    """x_s, target: shape and dtype of x_cut. weight: (B,) float32 (float64 for float64), a square root."""

    x_s: Tensor
    target: Tensor
    weight: Tensor


def partial_noise(
    x_cut: Tensor,
    levels: Tensor,
    alpha_cut: float,
    sigma_cut: float,
    *,
    noise: Tensor | None = None,
    sample_id: Tensor | None = None,
    step: Tensor | None = None,
    seed: int = 0,
) -> PartialNoise:
    """x_cut: (B, ...). levels: (B, 4) float64 rows (alpha_s, sigma_s, c, d), sigma_s > 0. alpha_cut > 0.

    The noise e is `noise` (shape of x_cut), or `philox_normal` of (seed, sample_id, step), both (B,) int64.
    Coefficients are computed in float64, the rest in float32 (float64 for float64). Raises InputError.
    """
    check_state("x_cut", x_cut)
    check_no_gradient("partial_noise", x_cut, noise, levels)
    if levels.shape != (x_cut.shape[0], 4) or levels.dtype is not torch.float64 or levels.device != x_cut.device:
        raise InputError(
            f"levels is {levels.dtype} {tuple(levels.shape)} on {levels.device}: ({x_cut.shape[0]}, 4) float64 on "
            f"{x_cut.device} is needed"
        )
    if noise is not None:
        check_like("noise", noise, x_cut)
    elif sample_id is None or step is None:
        raise InputError("give noise=, or sample_id= and step= to draw it from")
    else:
        check_rows("sample_id", sample_id, x_cut, torch.int64)
        check_rows("step", step, x_cut, torch.int64)
    call = _op if traced(x_cut, levels) else _run
    return PartialNoise(*call(x_cut, noise, levels, sample_id, step, signed(seed), alpha_cut, sigma_cut))


def _run(
    x: Tensor,
    noise: Tensor | None,
    levels: Tensor,
    sample_id: Tensor | None,
    step: Tensor | None,
    seed: int,
    alpha_cut: float,
    sigma_cut: float,
) -> tuple[Tensor, Tensor, Tensor]:
    launch = launcher("partial_noise", x)
    if launch is None:
        return _reference(x, noise, levels, sample_id, step, seed, alpha_cut, sigma_cut)
    x = x.contiguous()
    noise = None if noise is None else noise.to(x.dtype).contiguous()
    x_s, target = torch.empty_like(x), torch.empty_like(x)
    weight = x.new_empty(x.shape[0], dtype=torch.float32)
    launch(x, noise, levels.contiguous(), sample_id, step, seed, alpha_cut, sigma_cut, x_s, target, weight)
    return x_s, target, weight


def _reference(
    x: Tensor,
    noise: Tensor | None,
    levels: Tensor,
    sample_id: Tensor | None,
    step: Tensor | None,
    seed: int,
    alpha_cut: float,
    sigma_cut: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = wide(x)
    alpha, sigma, c, d = levels.unbind(1)
    a = alpha / alpha_cut
    root = (sigma**2 - (a * sigma_cut) ** 2).clamp(min=0.0).sqrt()
    weight = root / sigma
    target_x = weight * c / alpha_cut
    target_noise = d - c * a * sigma_cut**2 / (alpha_cut * sigma)
    if noise is None:
        assert sample_id is not None and step is not None
        noise = philox_normal(seed, sample_id, step, x[:1].numel(), dtype).view(x.shape)
    state, e = x.to(dtype), noise.to(dtype)
    a, root, target_x, target_noise = (over_samples(value.to(dtype), x) for value in (a, root, target_x, target_noise))
    x_s = a * state + root * e
    target = target_x * state + target_noise * e
    return x_s.to(x.dtype).contiguous(), target.to(x.dtype).contiguous(), weight.to(dtype)


def _fake(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=wide(x))


_op = register(
    "partial_noise(Tensor x, Tensor? noise, Tensor levels, Tensor? sample_id, Tensor? step, int seed, "
    "float alpha_cut, float sigma_cut) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
