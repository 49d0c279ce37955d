"""diffusers' schedulers with the whole step in one kernel: the same configuration, signatures and pictures.

    from pgraft_fast.schedulers import FastDDIMScheduler as DDIMScheduler

Needs the extra `diffusers`.
"""

try:
    import diffusers as _diffusers  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "pgraft_fast.schedulers needs diffusers: pip install 'pgraft-fast[diffusers]'", name=error.name
    ) from error

from pgraft_fast.schedulers.ddim import FastDDIMScheduler
from pgraft_fast.schedulers.ddpm import FastDDPMScheduler
from pgraft_fast.schedulers.dpm_solver import FastDPMSolverMultistepScheduler
from pgraft_fast.schedulers.euler import FastEulerDiscreteScheduler
from pgraft_fast.schedulers.flow_euler import FastFlowMatchEulerDiscreteScheduler

__all__ = [
    "FastDDIMScheduler",
    "FastDDPMScheduler",
    "FastDPMSolverMultistepScheduler",
    "FastEulerDiscreteScheduler",
    "FastFlowMatchEulerDiscreteScheduler",
]
