"""Schedulers of diffusers, as its pipelines call them, and our tables for the same steps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule
from pgraft_fast.sampling import make_steps
from pgraft_fast.sampling.solvers import make_table

GUIDANCE = 7.5
# The noise law of Stable Diffusion.
_LAW: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing",
}  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A scheduler by the name of its class, and its configuration. timed: which of its n steps are taken, one after the
    other. options: of its step.

    noisy: it draws from a generator. stateful: it counts its steps and must be set back before each pass.
    """

    scheduler: str
    config: dict[str, Any]
    solver: str
    eta: float | None
    n: int
    timed: range
    options: dict[str, Any]
    noisy: bool = False
    stateful: bool = False

    def table(self, device: torch.device) -> Tensor:
        """(n, 8) float32 rows of `ops.solver_step` for the same steps."""
        schedule = Schedule.from_diffusers({"_class_name": self.scheduler, **_LAW, **self.config})
        rows = make_table(make_steps(schedule, schedule.grid(self.n), self.solver, "epsilon", self.eta))
        return rows.coefficients.to(device, torch.float32)

    def run(self, x: Tensor, text: Tensor, null: Tensor, generator: torch.Generator) -> "Running":
        """The work of a pipeline between two calls of the network. Raises ImportError without diffusers."""
        import diffusers

        scheduler = getattr(diffusers, self.scheduler)(**_LAW, **self.config)
        scheduler.set_timesteps(self.n, device=x.device)
        options = {**self.options, **({"generator": generator} if self.noisy else {})}
        times = list(scheduler.timesteps[self.timed.start : self.timed.stop])
        return Running(scheduler, times, options, (x, text, null))


@dataclass(frozen=True)
class Running:
    """A scheduler with its inputs."""

    scheduler: Any
    times: list[Tensor]
    options: dict[str, Any]
    inputs: tuple[Tensor, Tensor, Tensor]

    def __call__(self) -> list[Tensor]:
        x, text, null = self.inputs
        for t in self.times:
            out = null + GUIDANCE * (text - null)
            x = self.scheduler.step(out, t, x, **self.options, return_dict=False)[0]
        return [x]

    def reset(self) -> None:
        """Before the first step again."""
        self.scheduler.set_timesteps(self.scheduler.num_inference_steps, device=self.inputs[0].device)


_DDIM: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": True}
_DDPM: dict[str, Any] = {"clip_sample": False, "variance_type": "fixed_small"}
_DPM: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
_MIDDLE = range(25, 26)
PEERS = {
    "ddim": Peer("DDIMScheduler", _DDIM, "ddim", 0.0, 50, _MIDDLE, {"eta": 0.0}),
    "ddim eta=1": Peer("DDIMScheduler", _DDIM, "ddim", 1.0, 50, _MIDDLE, {"eta": 1.0}, noisy=True),
    "ddpm": Peer("DDPMScheduler", _DDPM, "ddpm", None, 50, _MIDDLE, {}, noisy=True),
    # Its history makes a whole pass the unit.
    "dpmpp_2m": Peer("DPMSolverMultistepScheduler", _DPM, "dpmpp_2m", None, 20, range(20), {}, stateful=True),
}
