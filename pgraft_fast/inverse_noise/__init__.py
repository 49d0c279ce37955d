"""Correction of flow models without a reward: the noise that data come from, and its law."""

from pgraft_fast.inverse_noise.generator import SOLVERS, flow_steps, generate
from pgraft_fast.inverse_noise.invert import Inversion, invert

__all__ = ["SOLVERS", "Inversion", "flow_steps", "generate", "invert"]
