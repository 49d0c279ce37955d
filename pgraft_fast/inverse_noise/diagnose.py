"""Is inverse noise standard normal? What a corrector could mend, and whether there is anything to mend.

Every test is one of the hypothesis that the rows are independent draws of N(0, I): chi-squared for the mean, random
matrix theory for the spectrum, Kolmogorov-Smirnov for coordinates and radius, and a permutation test of the energy
distance to fresh normal noise, which sees any difference.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.diffusion import Stream, normal
from pgraft_fast.errors import InputError

_SPECTRUM_LIMIT = 2048
_PERMUTATIONS = 499
_PERMUTED = 2000
_LEVEL = 0.01


@dataclass(frozen=True)
class NoiseDiagnosis:
    """rows, size: n rows of d numbers.

    mean: root mean square of the d means, 1 / sqrt(n) under N(0, I); mean_p: its p-value. variance: mean over the
    coordinates. spectrum: (d,) rising eigenvalues of the covariance, or None beyond 2,048; spectrum_range: those
    between which they would lie (Marchenko-Pastur edges). ks: (d,) a coordinate; ks_p: of the largest, times d.
    radius_ks, radius_p: of the squared length against its chi-squared law. energy, energy_p: distance to fresh normal
    noise.
    """

    rows: int
    size: int
    mean: float
    mean_p: float
    variance: float
    spectrum: Tensor | None
    spectrum_range: tuple[float, float]
    ks: Tensor
    ks_p: float
    radius_ks: float
    radius_p: float
    energy: float
    energy_p: float

    @property
    def p(self) -> float:
        """Of all tests together: the smallest p-value times their number, at most 1."""
        return min(1.0, 4.0 * min(self.mean_p, self.ks_p, self.radius_p, self.energy_p))

    @property
    def correctable(self) -> bool:
        """Whether the noise is not standard normal, at the 1 % level."""
        return self.p < _LEVEL

    def summary(self) -> str:
        """One line."""
        verdict = "a corrector has something to learn" if self.correctable else "nothing to correct was found"
        return (
            f"inverse noise of {self.rows} samples: variance {self.variance:.3f}, mean {self.mean:.3f} "
            f"(p {self.mean_p:.2g}), radius p {self.radius_p:.2g}, coordinates p {self.ks_p:.2g}, "
            f"energy distance p {self.energy_p:.2g}: {verdict}"
        )


def diagnose(noise: Tensor, seed: int = 0) -> NoiseDiagnosis:
    """Test rows (n, ...) of inverse noise; rows that are nan are left out. Raises InputError for fewer than 20."""
    from scipy import stats

    flat = noise.flatten(1).to(torch.float64).cpu()
    flat = flat[torch.isfinite(flat).all(dim=1)]
    n, d = flat.shape
    if n < 20:
        raise InputError(f"diagnose: {n} whole rows of noise, at least 20 are needed")
    mean = flat.mean(dim=0)
    radius = flat.square().sum(dim=1).numpy()
    radius_ks = stats.kstest(radius, stats.chi2(d).cdf)
    # Also an asymptotic p-value of every coordinate; the largest distance decides.
    ordered = flat.sort(dim=0).values
    law = torch.special.ndtr(ordered)
    steps = torch.arange(1, n + 1, dtype=torch.float64)[:, None] / n
    ks = torch.maximum((steps - law).amax(dim=0), (law - (steps - 1.0 / n)).amax(dim=0))
    spectrum = torch.linalg.eigvalsh(torch.cov(flat.T).reshape(d, d)) if d <= _SPECTRUM_LIMIT else None
    edge = math.sqrt(d / n)
    energy, energy_p = energy_test(flat, seed)
    return NoiseDiagnosis(
        rows=n,
        size=d,
        mean=float(mean.square().mean().sqrt()),
        mean_p=float(stats.chi2(d).sf(n * float(mean.square().sum()))),
        variance=float(flat.var(dim=0).mean()),
        spectrum=spectrum,
        spectrum_range=(max(0.0, 1.0 - edge) ** 2, (1.0 + edge) ** 2),
        ks=ks,
        ks_p=min(1.0, d * float(stats.kstwo(n).sf(float(ks.max())))),
        radius_ks=float(radius_ks.statistic),
        radius_p=float(radius_ks.pvalue),
        energy=energy,
        energy_p=energy_p,
    )


def energy_test(rows: Tensor, seed: int = 0) -> tuple[float, float]:
    """Energy distance 2 E|X - Z| - E|X - X'| - E|Z - Z'| of rows (n, d) to fresh normal ones, and its p-value.

    The p-value is that of 499 permutations of both sets, of at most 2,000 rows each. Szekely and Rizzo 2004, "Testing
    for equal distributions in high dimension".
    """
    n = min(rows.shape[0], _PERMUTED)
    x = rows[:n].to(torch.float64)
    z = normal(seed, torch.arange(n), 0, tuple(x.shape[1:]), Stream.DATA_NOISE, torch.float64)
    both = torch.cat((x, z))
    distance = torch.cdist(both, both)
    # With labels s = +1 and -1 the statistic is -s^T D s / n^2, whatever the labels.
    labels = torch.ones(2 * n, dtype=torch.float64)
    labels[n:] = -1.0
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([labels[torch.randperm(2 * n, generator=generator)] for _ in range(_PERMUTATIONS)])
    statistic = -float(labels @ distance @ labels) / n**2
    others = -((drawn @ distance) * drawn).sum(dim=1) / n**2
    return statistic, (1.0 + float((others >= statistic).sum())) / (_PERMUTATIONS + 1.0)
