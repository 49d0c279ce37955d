"""DPM-Solver multistep, as diffusers.DPMSolverMultistepScheduler, in one fused step."""

from typing import Any, cast

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.sampling.guidance import Guide
from pgraft_fast.schedulers.fused import FusedScheduler, Generators, Rows, can_fuse, draw, take
from pgraft_fast.schedulers.plan import Planned, StepPlan, third_state
from pgraft_fast.schedulers.rows import dpm_rows


class DPMSolverMultistepScheduler(FusedScheduler, diffusers.DPMSolverMultistepScheduler):
    """diffusers.DPMSolverMultistepScheduler with `step` in one pass; configuration and results are its own.

    Formulas: Lu et al. 2022, arXiv 2206.00927 and 2211.01095; orders 1 to 3, ODE and SDE. The third order reads one
    more tensor, in a second pass.
    """

    _predictions = ("epsilon", "sample", "v_prediction", "flow_prediction")

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """x_t -> x_s; arguments, errors and results as in diffusers.DPMSolverMultistepScheduler.step.

        Raises InputError for solver_order=3 with "sde-dpmsolver", which diffusers does not define.
        """
        x_s, _ = self.advance(model_output, timestep, sample, generator=generator, variance_noise=variance_noise)
        return SchedulerOutput(prev_sample=x_s) if return_dict else (x_s,)

    def _fused(
        self,
        out: Tensor,
        timestep: Any,
        x: Tensor,
        *,
        guide: Guide | None,
        keep: bool,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None] | None:
        config = self.config
        limits = self._limits()
        data = config.algorithm_type.endswith("++")
        # A thresholded x_0 is turned back into epsilon before it is kept; for a flow there is no such formula.
        converted = not data and (bool(limits) or config.prediction_type == "flow_prediction")
        if self.num_inference_steps is None or limits is None or converted:
            return None
        cut_variance = config.prediction_type == "epsilon" and config.variance_type in ("learned", "learned_range")
        if cut_variance:
            if guide is not None or out.ndim < 2:
                return None
            out = out[:, :3]
        noise = None
        if variance_noise is not None and config.algorithm_type.startswith("sde"):
            noise = variance_noise.to(device=out.device, dtype=torch.float32)
        if self.step_index is None:
            self._init_step_index(timestep)
        index, order = self._step_index, self._order(self._step_index, self.lower_order_nums)
        earlier = self.model_outputs[len(self.model_outputs) + 1 - order :]
        if not 0 <= index < self.sigmas.numel() - 1 or not can_fuse(out, x, noise, *earlier):
            return None
        if order == 3 and config.algorithm_type == "sde-dpmsolver":
            raise InputError("solver_order=3 is not defined for algorithm_type='sde-dpmsolver'; take solver_order=2")
        rows, second = self._rows(config.prediction_type, (self.sigmas, self._internal_dict), self._table)
        row = (order - 1) * (self.sigmas.numel() - 1) + index
        if not rows.finite[row]:
            return None
        if out.dtype is not x.dtype:
            x = x.to(torch.promote_types(x.dtype, out.dtype))
        # The model's output itself keeps its dtype, and gives it to the state.
        plain = config.prediction_type == ("sample" if data else "epsilon")
        dtype = out.dtype if plain else x.dtype
        if noise is None and config.algorithm_type.startswith("sde"):
            noise = draw(out.shape, generator, out.device, torch.float32)
        previous = None
        if order == 2:
            previous = self.model_outputs[-1]
        elif order == 3:
            x, previous = third_state(x, self.model_outputs, second[row])
        done = take(rows, row, x, out, guide, keep=True, previous=previous, noise=noise, **limits)
        m = cast(Tensor, done.x_0).to(dtype)
        self.model_outputs = [*self.model_outputs[1:], m]
        self.lower_order_nums = min(self.lower_order_nums + 1, config.solver_order)
        self._step_index += 1
        return done.x_s.to(dtype), m

    def plan(self, first: int, last: int, x: Tensor, options: dict[str, Any]) -> StepPlan | None:
        """See `FusedScheduler.plan`."""
        config, limits = self.config, self._limits()
        plain = config.algorithm_type.endswith("++") or (not limits and config.prediction_type != "flow_prediction")
        learned = config.variance_type in ("learned", "learned_range")
        if limits is None or not plain or learned or options.get("variance_noise") is not None or not self._is_known():
            return None
        rows, weights = self._rows(config.prediction_type, (self.sigmas, self._internal_dict), self._table)
        noisy, levels, steps = config.algorithm_type.startswith("sde"), self.sigmas.numel() - 1, []
        for index in range(first, last):
            order = self._order(index, self.lower_order_nums + index - first)
            steps.append(Planned((order - 1) * levels + index, noisy, order=order))
        if not all(rows.finite[step.row] for step in steps):
            return None
        history = [m for m in self.model_outputs if m is not None][-2:]
        return StepPlan(
            rows, steps, limits, noise_dtype=torch.float32, multistep=True, weights=weights, history=history
        )

    def planned_done(self, plan: StepPlan) -> None:
        """See `FusedScheduler.planned_done`."""
        order = self.config.solver_order
        self._step_index = plan.steps[-1].row % (self.sigmas.numel() - 1) + 1
        self.lower_order_nums = min(self.lower_order_nums + len(plan.steps), order)
        self.model_outputs = [*[None] * order, *plan.history][-order:]

    def _order(self, index: int, before: int) -> int:
        """The order of step `index` after `before` steps: it rises from 1, and falls at the end of short schedules."""
        config, steps = self.config, len(self.timesteps)
        left = steps - index
        short = config.lower_order_final and steps < 15
        last = left == 1 and (config.euler_at_final or short or config.final_sigmas_type == "zero")
        if config.solver_order == 1 or before < 1 or last:
            return 1
        if config.solver_order == 2 or before < 2 or (left == 2 and short):
            return 2
        return 3

    def _table(self) -> tuple[Rows, list[tuple[float, float]]]:
        """Rows of the orders one after the other; the weights of the two m before, which order 3 adds up."""
        alpha, sigma = (level.to(torch.float64) for level in self._levels())
        config = self.config
        level = self.sigmas.to("cpu", torch.float64)
        rows = dpm_rows(alpha, sigma, level, config.prediction_type, config.algorithm_type, config.solver_type)
        weights = rows[..., [4, 8]].reshape(-1, 2).tolist()
        rows[2, :, 4] = torch.where(rows[2, :, 4].isfinite() & rows[2, :, 8].isfinite(), 1.0, float("nan"))
        return Rows(rows[..., :8].reshape(-1, 8)), [(last, before) for last, before in weights]

    def _levels(self) -> tuple[Tensor, Tensor]:
        """alpha and sigma at each of the S + 1 levels."""
        sigma = self.sigmas.to("cpu", torch.float64)
        if self.config.use_flow_sigmas:
            return 1.0 - sigma, sigma
        alpha = (sigma.square() + 1.0).rsqrt()
        return alpha, sigma * alpha


FastDPMSolverMultistepScheduler = DPMSolverMultistepScheduler
