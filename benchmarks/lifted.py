"""A world at a higher resolution than its model: every latent is told by side x side latents of equal value.

Large autoencoders have several latents a feature. There the noise of one latent says little: the mean of a block has
side^2 times its signal-to-noise ratio, so that what a picture shows is settled at higher noise. With y_0 = x_0 repeated
and y_t = alpha y_0 + sigma n, the mean m of a block is x_0 at log-SNR + 2 log side, and all that y_t says of x_0; a
model of x is then one of y, without a training and as good:

    E[y_0 | y_t] = E[x_0 | x_t' = alpha(t') m / alpha], repeated,   logsnr(t') = logsnr(t) + 2 log side.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.diffusion.parameterization import convert
from pgraft_fast.finetune import Learner
from pgraft_fast.rewards.protocol import as_call, name_of
from pgraft_fast.sampling import Guided
from pgraft_fast.tasks import Task


class Lifted(nn.Module):
    """model(y, t, ...) of blocks of side x side latents, from a model of (B, C, H, W) latents.

    inner: the model's own schedule, schedule: that of y. At log-SNRs that the model does not know, it is asked at the
    nearest one that it knows.
    """

    def __init__(
        self, model: Any, inner: Schedule, parameterization: str, side: int, schedule: Schedule | None = None
    ) -> None:
        super().__init__()
        self.model, self.inner, self.parameterization, self.side = model, inner, parameterization, side
        self.schedule = inner if schedule is None else schedule

    @property
    def calls_a_sample(self) -> int:
        """See `sampling.calls_of`."""
        return int(getattr(self.model, "calls_a_sample", 1))

    def forward(self, y: Tensor, t: Tensor, *condition: Tensor) -> Tensor | Guided:
        at = self.schedule.logsnr(t.double()) + 2.0 * math.log(self.side)
        t_in = self.inner.t_of_logsnr(at).clamp(1e-3, 1.0).to(t.dtype)
        (alpha, sigma), (alpha_in, sigma_in) = self.schedule.alpha_sigma(t), self.inner.alpha_sigma(t_in)
        # Equal but where the model's range ends.
        factor = torch.where(alpha > sigma, alpha_in / alpha, self.side * sigma_in / sigma)
        x = factor.to(y.dtype).view(-1, 1, 1, 1) * nn.functional.avg_pool2d(y, self.side)
        out = self.model(x, t_in, *condition)
        back = partial(self._back, y=y, t=t, x=x, t_in=t_in)
        return Guided(back(out.out), back(out.out_null), out.scale) if isinstance(out, Guided) else back(out)

    def _back(self, out: Tensor, *, y: Tensor, t: Tensor, x: Tensor, t_in: Tensor) -> Tensor:
        x_0 = convert(out, x, self.inner, t_in, self.parameterization, "x_0")
        y_0 = repeated(x_0, self.side)
        return convert(y_0, y, self.schedule, t, "x_0", self.parameterization)


def repeated(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) to (B, C, side H, side W)."""
    return x.repeat_interleave(side, dim=-1).repeat_interleave(side, dim=-2)


class _OfMeans:
    """A reward of the means of blocks."""

    def __init__(self, reward: Callable[..., object], side: int) -> None:
        self._call, self._side, self.name = as_call(reward), side, name_of(reward)

    def __call__(
        self, samples: Tensor, prompts: Sequence[str], sample_ids: Sequence[int], on_wait: Callable[[], None]
    ) -> object:
        return self._call(nn.functional.avg_pool2d(samples, self._side), prompts, sample_ids, on_wait)


def lift(
    task: Task, learner: Learner, reward: Callable[..., object], side: int, schedule: Schedule
) -> tuple[Task, Callable[..., object]]:
    """The task and its reward in blocks, with a schedule of their own; what the learner calls is lifted in place."""

    def of(model: Any) -> Any:
        return Lifted(model, task.schedule, task.parameterization, side, schedule)

    for name in ("run", "sampled", "frozen", "averaged", "ema"):
        setattr(learner, name, of(getattr(learner, name)))
    channels, height, width = task.shape
    lifted = replace(
        task, name=f"{task.name}, {side} x {side} latents a feature", model=of(task.model),
        schedule=schedule,
        shape=(channels, side * height, side * width),
        features=lambda y, condition: task.features(nn.functional.avg_pool2d(y, side), condition),
        pictures=lambda y, condition: task.pictures(nn.functional.avg_pool2d(y, side), condition),
    )  # fmt: skip
    return lifted, _OfMeans(reward, side)
