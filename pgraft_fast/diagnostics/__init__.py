"""Measuring what came out."""

from pgraft_fast.diagnostics.diversity import diversity, vendi_score
from pgraft_fast.diagnostics.flops import count_flops
from pgraft_fast.diagnostics.inception import inception_features
from pgraft_fast.diagnostics.quality import (
    Interval,
    Slices,
    frechet_distance,
    mean_interval,
    nearest_distances,
    precision_recall,
    sliced_wasserstein,
)

__all__ = [
    "Interval",
    "Slices",
    "count_flops",
    "diversity",
    "frechet_distance",
    "inception_features",
    "mean_interval",
    "nearest_distances",
    "precision_recall",
    "sliced_wasserstein",
    "vendi_score",
]
