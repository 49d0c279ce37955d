"""Euler on sigma, as diffusers.EulerDiscreteScheduler, in one fused step."""

import math
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from torch import Tensor

from pgraft_fast.sampling.guidance import Guide
from pgraft_fast.schedulers.fused import FusedScheduler, Generators, Rows, can_fuse, draw, take
from pgraft_fast.schedulers.plan import Planned, StepPlan
from pgraft_fast.schedulers.rows import euler_rows

_DEFAULTS = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": float("inf")}


class EulerDiscreteScheduler(FusedScheduler, diffusers.EulerDiscreteScheduler):
    """diffusers.EulerDiscreteScheduler with `step` in one pass; configuration, signatures and results are its own.

    Formula: Karras et al. 2022, arXiv 2206.00364, algorithm 2 without the second stage; x = x_0 + sigma epsilon.
    """

    _predictions = ("epsilon", "sample", "original_sample", "v_prediction")

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """sample / sqrt(sigma^2 + 1)."""
        if self.step_index is None:
            self._init_step_index(timestep)
        self.is_scale_input_called = True
        return sample / self._scales_of()[self._step_index]

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
        return_dict: bool = True,
    ) -> EulerDiscreteSchedulerOutput | tuple[Tensor, Tensor | None]:
        """x_t -> x_s; arguments, errors and results as in diffusers.EulerDiscreteScheduler.step."""
        x_s, x_0 = self.advance(
            model_output, timestep, sample, keep=True, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax,
            s_noise=s_noise, generator=generator,
        )  # fmt: skip
        return EulerDiscreteSchedulerOutput(prev_sample=x_s, pred_original_sample=x_0) if return_dict else (x_s, x_0)

    def _fused(
        self,
        out: Tensor,
        timestep: Any,
        x: Tensor,
        *,
        guide: Guide | None,
        keep: bool,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
    ) -> tuple[Tensor, Tensor | None] | None:
        integer = isinstance(timestep, (int, torch.IntTensor, torch.LongTensor))
        if integer or not self.is_scale_input_called or not can_fuse(out, x):
            return None
        if self.step_index is None:
            self._init_step_index(timestep)
        rows, churn = self._rows_of(s_churn, s_tmin, s_tmax)
        row = self._step_index
        if not rows.finite[row]:
            return None
        dtype = out.dtype
        if x.dtype is not dtype:
            x = x.to(torch.promote_types(x.dtype, dtype))
        if churn[row] > 0.0:
            noise = draw(out.shape, generator, out.device, out.dtype)
            x = torch.add(x.float(), noise, alpha=s_noise * churn[row])
        done = take(rows, row, x, out, guide, keep=keep)
        self._step_index += 1
        kept = dtype if self.config.prediction_type.endswith("sample") else torch.promote_types(dtype, torch.float32)
        return done.x_s.to(dtype), done.x_0 if done.x_0 is None else done.x_0.to(kept)

    def plan(self, first: int, last: int, x: Tensor, options: dict[str, Any]) -> StepPlan | None:
        """See `FusedScheduler.plan`."""
        rows, churn = self._rows_of(*(options.get(name, default) for name, default in _DEFAULTS.items()))
        # Churn is added in float32.
        if (any(churn) and x.dtype is not torch.float32) or not self._is_known():
            return None
        noise, scales = options.get("s_noise", 1.0), self._scales_of()
        steps = [Planned(row, churn[row] > 0, noise * churn[row], scale=scales[row]) for row in range(first, last)]
        return StepPlan(rows, steps, scaled=True) if all(rows.finite[first:last]) else None

    def planned_done(self, plan: StepPlan) -> None:
        """See `FusedScheduler.planned_done`."""
        self._step_index, self.is_scale_input_called = plan.steps[-1].row + 1, True

    def _rows_of(self, s_churn: float, s_tmin: float, s_tmax: float) -> tuple[Rows, list[float]]:
        return self._rows(
            (s_churn, s_tmin, s_tmax, self.config.prediction_type),
            (self.sigmas, self._internal_dict),
            lambda: self._table(s_churn, s_tmin, s_tmax),
        )

    def _scales_of(self) -> list[float]:
        return self._rows("scale", (self.sigmas, self._internal_dict), self._scales)

    def _scales(self) -> list[float]:
        return (self.sigmas.to("cpu", torch.float64).square() + 1.0).sqrt().tolist()

    def _table(self, s_churn: float, s_tmin: float, s_tmax: float) -> tuple[Rows, list[float]]:
        """A row a step, and the standard deviation of the noise that churn adds before it."""
        sigma = self.sigmas.to("cpu", torch.float64)
        gamma = min(s_churn / (sigma.numel() - 1), math.sqrt(2.0) - 1.0)
        level = sigma[:-1]
        # Bounds are compared as diffusers compares them, in the dtype of its sigmas.
        own = self.sigmas[:-1].cpu()
        inside = (own >= s_tmin) & (own <= s_tmax)
        churned = torch.where(inside, level * (1.0 + gamma), level)
        std = (churned.square() - level.square()).clamp(min=0.0).sqrt()
        return Rows(euler_rows(level, churned, sigma[1:], self.config.prediction_type)), std.tolist()


FastEulerDiscreteScheduler = EulerDiscreteScheduler
