"""How good samples are: Frechet distance, precision and recall, means with intervals.

All distances are taken in a feature space that the caller chooses: features (n, d).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.errors import InputError


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Tensor) -> Interval:
    """Mean of independent values (n,) with Student's 95 % interval; values that are nan are left out."""
    values = values.flatten().to(torch.float64)
    values = values[torch.isfinite(values)]
    n = values.numel()
    if n == 0:
        raise InputError("mean_interval: no finite value")
    mean = float(values.mean())
    half = float(student(n - 1) * values.std() / n**0.5) if n > 1 else float("inf")
    return Interval(mean, mean - half, mean + half)


def student(freedom: int) -> float:
    """Half of a 95 % interval in standard errors, with so many degrees of freedom."""
    from scipy import stats

    return float(stats.t.ppf(0.975, freedom))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of two feature sets (n, d), (m, d), in float64.

    Heusel et al. 2017, arXiv 1706.08500, eq. 6. Raises InputError for fewer than two rows.
    """
    if min(a.shape[0], b.shape[0]) < 2:
        raise InputError(f"frechet_distance: needs at least 2 rows on each side, got {a.shape[0]} and {b.shape[0]}")
    a, b = a.detach().cpu().to(torch.float64), b.detach().cpu().to(torch.float64)
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # tr (S_a S_b)^(1/2) is the sum of singular values of S_a^(1/2) S_b^(1/2), stable for singular covariances too.
    cross = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2.0 * cross
    return max(0.0, float(distance))


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of samples inside the reference's k-nearest-neighbour balls, and the reverse.

    samples (n, d), reference (m, d) features. Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2.
    """
    if min(samples.shape[0], reference.shape[0]) <= k:
        raise InputError(f"precision_recall: needs more than k={k} rows on each side")
    samples, reference = samples.to(torch.float64), reference.to(torch.float64)
    between = torch.cdist(samples, reference)
    precision = (between <= _radius(reference, k)[None, :]).any(dim=1).double().mean()
    recall = (between <= _radius(samples, k)[:, None]).any(dim=0).double().mean()
    return float(precision), float(recall)


class Slices:
    """Random unit directions of a space of d numbers, on which sets too large to keep can be projected batch by batch.

    Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures".
    """

    def __init__(self, d: int, directions: int = 512, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        axes = torch.randn(d, directions, generator=generator)
        self._axes = axes / axes.norm(dim=0)

    def of(self, x: Tensor) -> Tensor:
        """(n, directions) float32 on the CPU, of x (n, ...)."""
        self._axes = self._axes.to(x.device)
        return (x.detach().flatten(1).to(torch.float32) @ self._axes).cpu()

    @staticmethod
    def distance(a: Tensor, b: Tensor) -> float:
        """Root of the mean over directions of the squared 2-Wasserstein distance of two sets' projections."""
        n = min(a.shape[0], b.shape[0])
        shares = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        difference = _quantiles(a.to(torch.float64), shares) - _quantiles(b.to(torch.float64), shares)
        return float(difference.square().mean().sqrt())


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 512, seed: int = 0) -> float:
    """Mean over random directions of the squared 2-Wasserstein distance of the projections, its root.

    a (n, ...), b (m, ...), see `Slices`. Raises InputError.
    """
    if min(a.shape[0], b.shape[0]) < 2 or a.shape[1:] != b.shape[1:]:
        raise InputError(f"sliced_wasserstein: {tuple(a.shape)} and {tuple(b.shape)} are no two sets of rows of a size")
    slices = Slices(a[0].numel(), directions, seed)
    return Slices.distance(slices.of(a), slices.of(b))


def nearest_distances(samples: Tensor, data: Tensor, batch_size: int = 1024) -> Tensor:
    """(n,) Euclidean distance of each sample (n, ...) to its nearest row of data (m, ...): small ones are copies."""
    flat = data.flatten(1).to(torch.float64)
    parts = [torch.cdist(batch.flatten(1).to(torch.float64), flat).amin(dim=1) for batch in samples.split(batch_size)]
    return torch.cat(parts)


def _quantiles(values: Tensor, shares: Tensor) -> Tensor:
    """(len(shares), k) of the columns of values (n, k): exact where there are as many shares as values."""
    ordered = values.sort(dim=0).values
    if ordered.shape[0] == shares.numel():
        return ordered
    place = shares * ordered.shape[0] - 0.5
    low = place.floor().long().clamp(0, ordered.shape[0] - 1)
    high = (low + 1).clamp(max=ordered.shape[0] - 1)
    part = (place - low).clamp(0.0, 1.0)[:, None]
    return ordered[low] * (1.0 - part) + ordered[high] * part


def _radius(points: Tensor, k: int) -> Tensor:
    """(n,) distance to the k-th neighbour other than the point itself."""
    return torch.cdist(points, points).kthvalue(k + 1, dim=1).values


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0.0).sqrt() @ vectors.T
