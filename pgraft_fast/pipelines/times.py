"""A pipeline's timesteps for our times in [0, 1], and back."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.diffusion.from_diffusers import parameterization_from_diffusers

# Of a scheduler's times from those that its noise levels tell; some round them to whole ones.
_OFF = 2.0


@dataclass(frozen=True)
class Times:
    """A timestep is scale t - first. table: rising noise levels with the timesteps that stand for them, where these are
    others. angle: of states with sigma = sin(pi / 2 scale t), alpha = cos: timesteps are these angles, or log: 0.25
    log(sigma / alpha).
    """

    scale: float
    first: float = 0.0
    table: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    angle: bool = False
    log: bool = False

    @classmethod
    def of(cls, scheduler: Any, sigmas: Tensor | None, timesteps: Tensor) -> "Times":
        """Of a scheduler whose timesteps are set."""
        config = scheduler.config
        if config.get("sigma_data") == 1.0 and config.get("prediction_type") == "v_prediction":
            # Of EDM's preconditioning then nothing is left but v of states of variance 1.
            log = sigmas is not None and abs(0.25 * math.log(float(sigmas[0])) - float(timesteps[0])) < 1e-3
            return cls(2.0 / math.pi * math.atan(float(config["sigma_max"])), angle=True, log=log)
        steps = int(config.get("num_train_timesteps", 1000))
        if parameterization_from_diffusers(scheduler) != "velocity":
            # Entry i of a table of noise levels is t = (i + 1) / steps.
            return cls(steps, 1.0)
        if sigmas is None or len(sigmas) < len(timesteps):
            return cls(steps)
        levels, times = (
            value[: len(timesteps)].detach().double().cpu().flip(0).numpy() for value in (sigmas, timesteps)
        )
        if float(np.abs(levels * steps - times).max()) <= _OFF or (np.diff(levels) <= 0).any():
            return cls(steps)
        return cls(steps, table=((0.0, *levels.tolist()), (0.0, *times.tolist())))

    def of_time(self, t: float) -> float:
        """The timestep of a time."""
        return float(self.of_times(torch.tensor(t, dtype=torch.float64)))

    def of_times(self, t: Tensor) -> Tensor:
        """Timesteps of times, float64; nothing is read back to the host."""
        t = t.to(torch.float64)
        if self.table is not None:
            levels, steps = _on_device(self.table, t.device)
            t = t.clamp(levels[0], levels[-1])
            place = torch.searchsorted(levels, t, right=True).clamp(1, len(levels) - 1)
            low, high = levels[place - 1], levels[place]
            return steps[place - 1] + (t - low) * ((steps[place] - steps[place - 1]) / (high - low))
        return 0.25 * (math.pi / 2.0 * self.scale * t).tan().log() if self.log else self.scale * t - self.first

    def back(self, timestep: float) -> float:
        """The inverse."""
        if self.table is not None:
            return float(np.interp(timestep, np.array(self.table[1]), np.array(self.table[0])))
        scaled = 2.0 / math.pi * math.atan(math.exp(4.0 * timestep)) if self.log else timestep + self.first
        return scaled / self.scale


@functools.lru_cache(maxsize=16)
def _on_device(table: tuple[tuple[float, ...], tuple[float, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    levels, steps = (torch.tensor(values, dtype=torch.float64, device=device) for values in table)
    return levels, steps
