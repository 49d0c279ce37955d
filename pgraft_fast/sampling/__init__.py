"""Sampling: solvers, whole and partial trajectories, handover at the cut."""

from pgraft_fast.sampling.graphs import GraphCache
from pgraft_fast.sampling.guidance import Guided, Model, calls_of, guided
from pgraft_fast.sampling.rollout import Rollout, rollout
from pgraft_fast.sampling.solvers import SOLVERS, make_steps, model_evaluations

__all__ = [
    "SOLVERS",
    "GraphCache",
    "Guided",
    "Model",
    "Rollout",
    "calls_of",
    "guided",
    "make_steps",
    "model_evaluations",
    "rollout",
]
