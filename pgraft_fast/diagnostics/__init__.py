"""Measuring what came out."""

from pgraft_fast.diagnostics.flops import count_flops
from pgraft_fast.diagnostics.quality import (
    Interval,
    frechet_distance,
    mean_interval,
    nearest_distances,
    precision_recall,
    sliced_wasserstein,
)

__all__ = [
    "Interval",
    "count_flops",
    "frechet_distance",
    "mean_interval",
    "nearest_distances",
    "precision_recall",
    "sliced_wasserstein",
]
