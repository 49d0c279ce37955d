"""Sampling: solvers, whole and partial trajectories, handover at the cut."""

from pgraft_fast.sampling.graphs import GraphCache
from pgraft_fast.sampling.guidance import guided
from pgraft_fast.sampling.rollout import Model, Rollout, rollout
from pgraft_fast.sampling.solvers import SOLVERS, make_steps, model_evaluations

__all__ = [
    "SOLVERS",
    "GraphCache",
    "Model",
    "Rollout",
    "guided",
    "make_steps",
    "model_evaluations",
    "rollout",
]
