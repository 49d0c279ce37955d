"""DDIM, as diffusers.DDIMScheduler, in one fused step."""

from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from pgraft_fast.sampling.guidance import Guide
from pgraft_fast.schedulers.fused import FusedScheduler, Generators, Rows, can_fuse, draw, take, widens
from pgraft_fast.schedulers.plan import Planned, StepPlan
from pgraft_fast.schedulers.rows import ddim_rows


class DDIMScheduler(FusedScheduler, diffusers.DDIMScheduler):
    """diffusers.DDIMScheduler with `step` in one pass over memory; configuration, signatures and results are its own.

    Formula: Song et al. 2021, arXiv 2010.02502, eq. 12. States (B, ...) float32, float16, bfloat16 or float64.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor | None]:
        """x_t -> x_s; arguments, errors and results as in diffusers.DDIMScheduler.step."""
        x_s, x_0 = self.advance(
            model_output, timestep, sample, keep=True, eta=eta, use_clipped_model_output=use_clipped_model_output,
            generator=generator, variance_noise=variance_noise,
        )  # fmt: skip
        return DDIMSchedulerOutput(prev_sample=x_s, pred_original_sample=x_0) if return_dict else (x_s, x_0)

    def _fused(
        self,
        out: Tensor,
        timestep: Any,
        x: Tensor,
        *,
        guide: Guide | None,
        keep: bool,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None] | None:
        limits = self._limits()
        both = variance_noise is not None and generator is not None
        noise = variance_noise if eta > 0 else None
        if self.num_inference_steps is None or limits is None or both or not can_fuse(out, x, noise):
            return None
        dtype = torch.promote_types(x.dtype, out.dtype)
        if noise is not None and torch.promote_types(noise.dtype, dtype) is not dtype:
            return None
        if widens(timestep, self.alphas_cumprod, dtype):
            return None
        rows, needs_out = self._rows_of(eta, bool(limits), use_clipped_model_output)
        row = self._value(timestep)
        # What else diffusers takes as an index, or refuses, is its own affair.
        if not isinstance(row, int) or not 0 <= row < len(rows.finite) or not rows.finite[row]:
            return None
        if x.dtype is not dtype:
            x = x.to(dtype)
        kept = out.dtype if self.config.prediction_type == "sample" else dtype
        if needs_out and guide is not None:
            out, guide = guide.combine(out), None
        if eta > 0 and noise is None:
            noise = draw(out.shape, generator, out.device, out.dtype)
        done = take(rows, row, x, out, guide, keep=keep, previous=out if needs_out else None, noise=noise, **limits)
        return done.x_s, done.x_0 if done.x_0 is None else done.x_0.to(kept)

    def plan(self, first: int, last: int, x: Tensor, options: dict[str, Any]) -> StepPlan | None:
        """See `FusedScheduler.plan`."""
        eta, limits = options.get("eta", 0.0), self._limits()
        if limits is None or options.get("variance_noise") is not None or not self._is_known():
            return None
        rows, needs_out = self._rows_of(eta, bool(limits), options.get("use_clipped_model_output", False))
        steps = [Planned(int(t), eta > 0) for t in self.times().values[first:last]]
        fine = all(0 <= step.row < len(rows.finite) and rows.finite[step.row] for step in steps)
        return StepPlan(rows, steps, limits, needs_out) if fine else None

    def _rows_of(self, eta: float, clipped: bool, from_clipped: bool) -> tuple[Rows, bool]:
        stride = self.config.num_train_timesteps // self.num_inference_steps
        return self._rows(
            (stride, eta, clipped, from_clipped, self.config.prediction_type),
            (self.alphas_cumprod, self.final_alpha_cumprod, self._internal_dict),
            lambda: self._table(stride, eta, clipped, from_clipped),
        )

    def _table(self, stride: int, eta: float, clipped: bool, from_clipped: bool) -> tuple[Rows, bool]:
        """A row for each training timestep."""
        levels = self.alphas_cumprod.cpu()
        final = self.final_alpha_cumprod.to(levels)
        before = torch.cat((final.expand(min(stride, levels.numel())), levels[: max(levels.numel() - stride, 0)]))
        rows, needs_out = ddim_rows(levels, before, self.config.prediction_type, float(eta), clipped, from_clipped)
        return Rows(rows), needs_out


FastDDIMScheduler = DDIMScheduler
