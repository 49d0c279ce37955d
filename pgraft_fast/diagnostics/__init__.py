"""Measuring what came out."""

from pgraft_fast.diagnostics.quality import Interval, frechet_distance, mean_interval, precision_recall

__all__ = ["Interval", "frechet_distance", "mean_interval", "precision_recall"]
