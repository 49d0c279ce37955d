"""The noise process: schedules, parameterizations and noise streams."""

from pgraft_fast.diffusion.noise import NoiseKey, Stream, normal, step_word, step_words, uniform
from pgraft_fast.diffusion.parameterization import (
    PARAMETERIZATIONS,
    convert,
    target_coefficients,
    x_0_coefficients,
)
from pgraft_fast.diffusion.schedule import Schedule, check_cut

__all__ = [
    "PARAMETERIZATIONS",
    "NoiseKey",
    "Schedule",
    "Stream",
    "check_cut",
    "convert",
    "normal",
    "step_word",
    "step_words",
    "target_coefficients",
    "uniform",
    "x_0_coefficients",
]
