"""A round of P-GRAFT as one writes it with diffusers and torch, without this package: what ours is held against.

Sample with a scheduler of diffusers, score, keep the best of each group with torch.topk, train with AdamW.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Coefficients = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Law:
    """A noise law as a script has it: alpha and sigma at t, the network's target c x_0 + d eps, and a scheduler.

    set_steps(scheduler, steps): before each pass. time: the network's t for a timestep of the scheduler.
    """

    alpha_sigma: Coefficients
    target: Coefficients
    scheduler: Any
    set_steps: Callable[[Any, int], None]
    time: Callable[[Tensor], Tensor]


def cosine_v() -> Law:
    """The shipped variance-preserving digits model, by DDPM. Raises ImportError without diffusers, as `linear_flow`."""
    import diffusers

    def alpha_sigma(t: Tensor) -> tuple[Tensor, Tensor]:
        start = 0.5 * math.pi * 0.008 / 1.008
        alpha = torch.cos(0.5 * math.pi * (t * 0.999 + 0.008) / 1.008) / math.cos(start)
        return alpha, (1.0 - alpha**2).sqrt()

    def target(t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = alpha_sigma(t)
        return -sigma, alpha

    alpha, _ = alpha_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    square = torch.cat((alpha.new_ones(1), alpha**2))
    betas = (1.0 - square[1:] / square[:-1]).clamp(max=0.999).tolist()
    scheduler = diffusers.DDPMScheduler(
        trained_betas=betas, prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )
    return Law(alpha_sigma, target, scheduler, diffusers.DDPMScheduler.set_timesteps, lambda step: (step + 1) / 1000)


def linear_flow() -> Law:
    """The shipped flow model, by Euler steps."""
    import diffusers

    def set_steps(scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1.0 / steps, steps).tolist())

    return Law(
        lambda t: (1.0 - t, t), lambda t: (-torch.ones_like(t), torch.ones_like(t)),
        diffusers.FlowMatchEulerDiscreteScheduler(), set_steps, lambda step: step / 1000,
    )  # fmt: skip


class Clocked:
    """A round that writes down where its time goes."""

    device: torch.device
    seconds: list[dict[str, float]]

    def _spent(self, part: str, began: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[-1][part] = now - began
        return now


@dataclass
class PlainRound(Clocked):
    """model(x, t, label): the reference. groups of `candidates` prompted by labels (groups,), the best k of each kept.

    passes: over the rows that are trained on: the kept ones, or with all_rows all of them, the others with weight 0.
    """

    model: nn.Module
    law: Law
    reward: Callable[[Tensor], Tensor]
    labels: Tensor
    shape: tuple[int, ...]
    candidates: int
    k: int
    steps: int
    cut: float
    passes: int
    sample_batch: int
    train_batch: int
    learning_rate: float
    clip: float
    ema_decay: float
    all_rows: bool = False
    compiled: bool = False
    seconds: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tuned = copy.deepcopy(self.model).requires_grad_(True)
        self.ema = copy.deepcopy(self.model)
        self.optimizer = torch.optim.AdamW(self.tuned.parameters(), self.learning_rate, weight_decay=0.0)
        wrap: Callable[[nn.Module], Any] = torch.compile if self.compiled else lambda module: module
        self._reference, self._tuned, self._ema = (wrap(network) for network in (self.model, self.tuned, self.ema))
        self.device = next(self.model.parameters()).device

    def run(self) -> tuple[Tensor, float]:
        """Rewards (groups, candidates), the last loss. `seconds` tells where the time of each run went."""
        self.seconds.append({})
        began = time.perf_counter()
        x_0, x_cut = self.sample()
        began = self._spent("sample", began)
        rewards = self.reward(x_0).view(-1, self.candidates)
        began = self._spent("score", began)
        first = self.candidates * torch.arange(len(rewards), device=self.device)
        best = rewards.topk(self.k, dim=1).indices + first[:, None]
        weight = torch.zeros(rewards.numel(), device=self.device)
        weight[best.flatten()] = 1.0
        rows = torch.arange(rewards.numel(), device=self.device) if self.all_rows else best.flatten()
        began = self._spent("accept", began)
        labels = self.labels.repeat_interleave(self.candidates)
        loss = self.train(x_cut[rows], labels[rows], weight[rows] if self.all_rows else None)
        self._spent("train", began)
        return rewards, loss

    @torch.no_grad()
    def sample(self, x_start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Final samples, and the states where the reference takes over. x_start: in place of fresh noise."""
        labels, scheduler = self.labels.repeat_interleave(self.candidates), self.law.scheduler
        if x_start is None:
            x_start = torch.randn(len(labels), *self.shape, device=self.device)
        finals, states = [], []
        for start, label in zip(x_start.split(self.sample_batch), labels.split(self.sample_batch), strict=True):
            x, kept = start, None
            self.law.set_steps(scheduler, self.steps)
            for timestep in scheduler.timesteps:
                t = self.law.time(timestep).to(self.device, torch.float32)
                if kept is None and t <= self.cut + 1e-6:
                    kept = x
                model = self._ema if kept is None else self._reference
                x = scheduler.step(model(x, t.expand(len(x)), label), timestep, x).prev_sample
            finals.append(x)
            states.append(x if kept is None else kept)
        return torch.cat(finals), torch.cat(states)

    def t_cut(self) -> float:
        """The first time of the steps at or below the cut."""
        self.law.set_steps(self.law.scheduler, self.steps)
        times = [float(self.law.time(timestep)) for timestep in self.law.scheduler.timesteps]
        return next(t for t in times if t <= self.cut + 1e-6)

    def train(self, x_cut: Tensor, labels: Tensor, weight: Tensor | None) -> float:
        """`passes` over the rows in random order; the last loss."""
        start, size = self.t_cut(), self.train_batch
        loss = torch.zeros(())
        order = torch.cat([torch.randperm(len(x_cut), device=self.device) for _ in range(self.passes + 1)])
        for step in range(max(1, round(self.passes * len(x_cut) / size))):
            rows = order[step * size : (step + 1) * size]
            t = 1.0 - torch.rand(len(rows), device=self.device) * (1.0 - start)
            each = self.losses(x_cut[rows], labels[rows], t, torch.randn_like(x_cut[rows]), start)
            loss = each.mean() if weight is None else (weight[rows] * each).mean()
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.tuned.parameters(), self.clip)
            self.optimizer.step()
            with torch.no_grad():
                for average, value in zip(self.ema.parameters(), self.tuned.parameters(), strict=True):
                    average.lerp_(value, 1.0 - self.ema_decay)
        return float(loss.detach())

    def losses(self, x_cut: Tensor, labels: Tensor, t: Tensor, noise: Tensor, start: float) -> Tensor:
        """(B,) weighted squared errors of the state objective at times t above the cut."""
        t_cut = torch.full_like(t, start)
        (alpha_c, sigma_c), (alpha, sigma) = self.law.alpha_sigma(t_cut), self.law.alpha_sigma(t)
        coefficients = (alpha_c, sigma_c, alpha, sigma, *self.law.target(t))
        alpha_c, sigma_c, alpha, sigma, c, d = (value.view(-1, 1, 1, 1) for value in coefficients)
        a = alpha / alpha_c
        spread = (sigma**2 - a**2 * sigma_c**2).clamp(min=1e-12).sqrt()
        x = a * x_cut + spread * noise
        x_0 = x_cut / alpha_c - a * sigma_c**2 * noise / (alpha_c * spread)
        target = c * x_0 + d * sigma * noise / spread
        return ((spread / sigma) ** 2 * (self._tuned(x, t, labels) - target) ** 2).mean(dim=(1, 2, 3))
