"""Euler on a flow, as diffusers.FlowMatchEulerDiscreteScheduler, in one fused step."""

from typing import Any, cast

import diffusers
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor

from pgraft_fast.sampling.guidance import Guide
from pgraft_fast.schedulers.fused import FusedScheduler, Generators, Rows, can_fuse, draw, take
from pgraft_fast.schedulers.plan import Planned, StepPlan
from pgraft_fast.schedulers.rows import flow_rows


class FlowMatchEulerDiscreteScheduler(FusedScheduler, diffusers.FlowMatchEulerDiscreteScheduler):
    """diffusers.FlowMatchEulerDiscreteScheduler with `step` in one pass; configuration and results are its own.

    x_s = x + (sigma_s - sigma_t) velocity, x = (1 - sigma) x_0 + sigma epsilon.
    """

    _sigmas_on_device = True
    _predictions = (None,)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """x_t -> x_s; arguments, errors and results as in diffusers' step, where s_* have no effect either."""
        x_s, _ = self.advance(
            model_output, timestep, sample, generator=generator, per_token_timesteps=per_token_timesteps
        )
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=cast(Any, x_s)) if return_dict else (x_s,)

    def _fused(
        self,
        out: Tensor,
        timestep: Any,
        x: Tensor,
        *,
        guide: Guide | None,
        keep: bool,
        generator: Generators = None,
        per_token_timesteps: Tensor | None = None,
        **unused: float,
    ) -> tuple[Tensor, Tensor | None] | None:
        integer = isinstance(timestep, (int, torch.IntTensor, torch.LongTensor))
        if integer or per_token_timesteps is not None or not can_fuse(out, x):
            return None
        if self.step_index is None:
            self._init_step_index(timestep)
        rows = self._rows(0, (self.sigmas, self._internal_dict), self._table)
        row = self._step_index
        dtype = out.dtype
        if x.dtype is not dtype:
            x = x.to(torch.promote_types(x.dtype, dtype))
        noise = None
        if self.config.stochastic_sampling:
            noise = draw(x.shape, generator, x.device, torch.float32)
        done = take(rows, row, x, out, guide, keep=keep, noise=noise)
        self._step_index += 1
        return (done.x_s if done.x_s.dtype is dtype else done.x_s.to(dtype)), done.x_0

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself. BriaPipeline asks every class but the very one of diffusers for it."""
        return sample

    def plan(self, first: int, last: int, x: Tensor, options: dict[str, Any]) -> StepPlan | None:
        """See `FusedScheduler.plan`."""
        if options.get("per_token_timesteps") is not None or not self._is_known():
            return None
        rows = self._rows(0, (self.sigmas, self._internal_dict), self._table)
        steps = [Planned(row, self.config.stochastic_sampling) for row in range(first, last)]
        return StepPlan(rows, steps, noise_dtype=torch.float32)

    def planned_done(self, plan: StepPlan) -> None:
        """See `FusedScheduler.planned_done`."""
        self._step_index = plan.steps[-1].row + 1

    def _table(self) -> Rows:
        sigma = self.host_sigmas().to(torch.float64)
        return Rows(flow_rows(sigma[:-1], sigma[1:], self.config.stochastic_sampling))


FastFlowMatchEulerDiscreteScheduler = FlowMatchEulerDiscreteScheduler
