"""The noise process: schedules, parameterizations and noise streams."""

from pgraft_fast.diffusion.noise import Stream, normal, uniform
from pgraft_fast.diffusion.parameterization import (
    PARAMETERIZATIONS,
    convert,
    target_coefficients,
    x_0_coefficients,
)
from pgraft_fast.diffusion.schedule import Schedule, check_cut

__all__ = [
    "PARAMETERIZATIONS",
    "Schedule",
    "Stream",
    "check_cut",
    "convert",
    "normal",
    "target_coefficients",
    "uniform",
    "x_0_coefficients",
]
