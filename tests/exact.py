"""Gaussian mixtures in one dimension: data whose score, marginals and posteriors are known in closed form."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pgraft_fast.diffusion import Schedule, target_coefficients


@dataclass(frozen=True)
class Mixture:
    """Weights, means and standard deviations of the components."""

    weight: tuple[float, ...] = (0.3, 0.7)
    mean: tuple[float, ...] = (-1.5, 0.8)
    std: tuple[float, ...] = (0.3, 0.5)

    def model(self, schedule: Schedule, parameterization: str):
        """The optimal network: model(x, t), exact; every element of x (B, ...) is a sample of its own."""
        weight, mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.weight, self.mean, self.std))

        def call(x: Tensor, t: Tensor) -> Tensor:
            t = t[:1].to(torch.float64)  # Rollouts give the whole batch one time.
            alpha, sigma = schedule.alpha_sigma(t)
            c, d = target_coefficients(schedule, t, parameterization)
            variance = (alpha * std) ** 2 + sigma**2
            rest = x.to(torch.float64)[..., None] - alpha * mean
            share = (weight.log() - 0.5 * variance.log() - 0.5 * rest**2 / variance).softmax(dim=-1)
            slope, offset = (c * alpha * std**2 + d * sigma) / variance, c * mean
            return (share * (offset + slope * rest)).sum(dim=-1).to(x.dtype)

        return call

    def cdf(self, x, alpha: float = 1.0, sigma: float = 0.0):
        """Law of alpha x_0 + sigma eps."""
        scales = [np.sqrt((alpha * s) ** 2 + sigma**2) for s in self.std]
        return sum(w * stats.norm.cdf(x, alpha * m, s) for w, m, s in zip(self.weight, self.mean, scales, strict=True))

    def pdf(self, x, alpha: float = 1.0, sigma: float = 0.0):
        """Density of alpha x_0 + sigma eps."""
        scales = [np.sqrt((alpha * s) ** 2 + sigma**2) for s in self.std]
        return sum(w * stats.norm.pdf(x, alpha * m, s) for w, m, s in zip(self.weight, self.mean, scales, strict=True))


def ks(samples: Tensor, cdf) -> float:
    """Kolmogorov-Smirnov distance of samples to a law."""
    return float(stats.kstest(samples.flatten().double().numpy(), cdf).statistic)
