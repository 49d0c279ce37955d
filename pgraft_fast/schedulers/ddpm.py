"""DDPM, as diffusers.DDPMScheduler, in one fused step."""

from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.sampling.guidance import Guide
from pgraft_fast.schedulers.fused import FusedScheduler, Generators, Rows, can_fuse, draw, take, widens
from pgraft_fast.schedulers.plan import Planned, StepPlan
from pgraft_fast.schedulers.rows import ddpm_rows, variances

_LEARNED = ("learned", "learned_range")


class DDPMScheduler(FusedScheduler, diffusers.DDPMScheduler):
    """diffusers.DDPMScheduler with `step` in one pass over memory; configuration, signatures and results are its own.

    Formula: Ho et al. 2020, arXiv 2006.11239, eq. 7. States (B, C, ...) float32, float16, bfloat16 or float64.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor | None]:
        """x_t -> x_s; arguments and results as in diffusers.DDPMScheduler.step.

        Raises InputError for variance_type "fixed_large_log", of which diffusers takes the square root of a negative
        logarithm, and for a timestep outside of the schedule.
        """
        x_s, x_0 = self.advance(model_output, timestep, sample, keep=True, generator=generator)
        return DDPMSchedulerOutput(prev_sample=x_s, pred_original_sample=x_0) if return_dict else (x_s, x_0)

    def _fused(
        self, out: Tensor, timestep: Any, x: Tensor, *, guide: Guide | None, keep: bool, generator: Generators = None
    ) -> tuple[Tensor, Tensor | None] | None:
        kind = self.variance_type
        spread = None
        if kind in _LEARNED:
            if guide is not None or out.ndim != x.ndim or out.shape[1] != 2 * x.shape[1]:
                return None
            out, spread = torch.split(out, x.shape[1], dim=1)
        limits = self._limits()
        if limits is None or kind != self.config.variance_type or not can_fuse(out, x):
            return None
        rows, place, bounds = self._rows_of()
        value = self._value(timestep)
        row = place.get(value)
        if row is None:
            raise InputError(f"timestep={value} is not one of scheduler.timesteps")
        if kind == "fixed_large_log" and value > 0:
            # diffusers takes the root of log beta, which is no number but where beta is 1.
            if bounds[row][1] < 0.0:
                raise InputError("variance_type='fixed_large_log' gives NaN in diffusers; take 'fixed_large'")
            return None
        # diffusers refuses a float, which cannot be an index.
        if not rows.finite[row] or isinstance(value, float):
            return None
        dtype = torch.promote_types(x.dtype, out.dtype)
        kept = out.dtype if self.config.prediction_type == "sample" else dtype
        if widens(timestep, self.alphas_cumprod, dtype):
            return None
        if x.dtype is not dtype:
            x = x.to(dtype)
        noise = None
        if value > 0:
            noise = draw(out.shape, generator, out.device, out.dtype)
            if spread is not None:
                noise = self._scale(bounds[row], spread) * noise
        done = take(rows, row, x, out, guide, keep=keep, noise=noise, **limits)
        return done.x_s, done.x_0 if done.x_0 is None else done.x_0.to(kept)

    def plan(self, first: int, last: int, x: Tensor, options: dict[str, Any]) -> StepPlan | None:
        """See `FusedScheduler.plan`."""
        limits, kind = self._limits(), self.variance_type
        if limits is None or kind in (*_LEARNED, "fixed_large_log") or kind != self.config.variance_type:
            return None
        if not self._is_known():
            return None
        rows, place, _ = self._rows_of()
        steps = [Planned(place[t], t > 0) for t in self.times().values[first:last]]
        return StepPlan(rows, steps, limits) if all(rows.finite[step.row] for step in steps) else None

    def _rows_of(self) -> tuple[Rows, dict[float, int], list[tuple[float, float]]]:
        sources = (self.timesteps, self.alphas_cumprod, self.one, self._internal_dict)
        counted = bool(self.custom_timesteps or self.num_inference_steps)
        return self._rows((self.config.prediction_type, self.variance_type, counted), sources, self._table)

    def _levels(self) -> tuple[Tensor, Tensor]:
        """Cumulative alphas before and after each step; NaN for a timestep that they do not have."""
        times = self.times().host.to(torch.int64)
        known = self.custom_timesteps or self.num_inference_steps
        after = torch.cat((times[1:], times.new_tensor([-1]))) if known else times - 1
        levels = self.alphas_cumprod.cpu()
        padded = torch.cat((levels, levels.new_tensor([float("nan")])))
        alpha_t, alpha_s = (padded[index.clamp(max=levels.numel())] for index in (times, after))
        return torch.where(times < 0, levels[times.clamp(max=-1)], alpha_t), torch.where(
            after < 0, self.one.to(levels), alpha_s
        )

    def _table(self) -> tuple[Rows, dict[float, int], list[tuple[float, float]]]:
        """A row for each step; the first row of each timestep; bounds of a learned log-variance."""
        times, values = self.times().host, self.times().values
        alpha_t, alpha_s = self._levels()
        rows = ddpm_rows(alpha_t, alpha_s, self.config.prediction_type, self.variance_type, times > 0)
        place: dict[float, int] = {}
        for row, time in enumerate(values):
            place.setdefault(time, row)
        beta, small = variances(alpha_t, alpha_s)
        return Rows(rows), place, list(zip(small.clamp(min=1e-20).log().tolist(), beta.log().tolist(), strict=True))

    def _scale(self, bounds: tuple[float, float], spread: Tensor) -> Tensor:
        """Standard deviation from the model's prediction (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15)."""
        if self.variance_type == "learned":
            return spread.sqrt()
        low, high = bounds
        share = (spread + 1.0) / 2.0
        return torch.exp(0.5 * (share * high + (1.0 - share) * low))


FastDDPMScheduler = DDPMScheduler
