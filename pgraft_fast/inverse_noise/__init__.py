"""Correction of flow models without a reward: the noise that data come from, and its law."""

from pgraft_fast.inverse_noise.corrector import NoiseCorrector
from pgraft_fast.inverse_noise.diagnose import NoiseDiagnosis, diagnose
from pgraft_fast.inverse_noise.generator import SOLVERS, flow_steps, generate
from pgraft_fast.inverse_noise.interpolants import INTERPOLANTS, Interpolant
from pgraft_fast.inverse_noise.invert import Inversion, invert
from pgraft_fast.inverse_noise.matching import FitSettings, Fitted, fit_field
from pgraft_fast.inverse_noise.shards import InverseNoise, invert_shards, open_shards
from pgraft_fast.inverse_noise.sources import Rows, Source

__all__ = [
    "INTERPOLANTS",
    "SOLVERS",
    "FitSettings",
    "Fitted",
    "Interpolant",
    "InverseNoise",
    "Inversion",
    "NoiseCorrector",
    "NoiseDiagnosis",
    "Rows",
    "Source",
    "diagnose",
    "fit_field",
    "flow_steps",
    "generate",
    "invert",
    "invert_shards",
    "open_shards",
]
