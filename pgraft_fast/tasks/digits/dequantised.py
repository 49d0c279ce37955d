"""A small flow of dequantised digits: the base of inverse noise correction.

The scans have 17 grey levels, so their law has no density; with noise of standard deviation 0.2 added it has one, and a
flow can be inverted on it (arXiv 2510.02692 perturbs its images, too).
"""

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from pgraft_fast.diagnostics import frechet_distance
from pgraft_fast.diffusion import Stream, normal
from pgraft_fast.inverse_noise import generate
from pgraft_fast.tasks.digits.data import SHAPE, load_digits

SIGMA = 0.2
_PIXELS = math.prod(SHAPE)
_FREQUENCIES = 16
_STEPS, _BATCH, _LEARNING_RATE, _EMA = 4000, 256, 1e-3, 0.995


class DigitsMLP(nn.Module):
    """model(x, t) -> dx/dt or another vector field. x: (B, 1, 8, 8). t: (B,) in [0, 1].

    zero: the last layer starts at 0, and the field with it.
    """

    def __init__(self, width: int = 256, depth: int = 3, zero: bool = False) -> None:
        super().__init__()
        self.frequency: Tensor
        frequency = 2.0 * math.pi * torch.logspace(-1.0, 1.0, _FREQUENCIES)
        self.register_buffer("frequency", frequency, persistent=False)
        sizes = [_PIXELS + 2 * _FREQUENCIES, *[width] * depth]
        layers: list[nn.Module] = []
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, _PIXELS))
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.bias)
        if zero:
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None].to(x.dtype) * self.frequency
        return self.layers(torch.cat((x.flatten(1), phase.sin(), phase.cos()), dim=1)).view_as(x)


def dequantised(split: str, n: int, seed: int) -> Tensor:
    """(n, 1, 8, 8) digits of "train" or "held_out" in turn, each with its own noise."""
    images = load_digits(split).images
    rows = torch.arange(n)
    return images[rows % images.shape[0]] + SIGMA * normal(seed, rows, 0, SHAPE, Stream.TRAIN_NOISE)


def train_mlp_flow(
    seed: int, steps: int = _STEPS, log: Callable[[str], None] = print, check: Callable[[], None] = lambda: None
) -> DigitsMLP:
    """Flow matching on the training digits with fresh noise each time; returns the averaged weights."""
    torch.manual_seed(seed)
    images, model = load_digits("train").images, DigitsMLP()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE, weight_decay=0.0, fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x_0 = images[torch.randint(0, images.shape[0], (_BATCH,))]
        x_0 = x_0 + SIGMA * torch.randn_like(x_0)
        noise, t = torch.randn_like(x_0), torch.rand(_BATCH)
        share = t.view(-1, 1, 1, 1)
        loss = (model((1.0 - share) * x_0 + share * noise, t) - (noise - x_0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        with torch.no_grad():
            for a, b in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 1.0 - _EMA)
        check()
        if (step + 1) % 1000 == 0:
            log(f"step {step + 1} of {steps}, loss {float(loss.detach()):.3f}")
    return average.requires_grad_(False).eval()


def mlp_flow_quality(model: nn.Module, classifier: nn.Module) -> dict[str, float]:
    """Frechet distances of 10,000 samples at 20 and 200 Euler steps to as many dequantised training digits, and of as
    many others of these: the floor.
    """
    n = 10_000
    with torch.no_grad():
        features: Callable[[Tensor], Tensor] = classifier.features  # type: ignore[assignment]
        reference = features(dequantised("train", n, 1))
        noise = normal(2, torch.arange(n), 0, SHAPE)
        found = {"fd_floor": frechet_distance(features(dequantised("train", n, 3)), reference)}
        for steps in (20, 200):
            found[f"fd_{steps}_steps"] = frechet_distance(features(generate(model, noise, steps)), reference)
        return found


def load_mlp_flow(folder: Path | None = None) -> DigitsMLP:
    """The shipped base, or that of a folder made by `train-base`. Raises CheckpointError."""
    from pgraft_fast.tasks.digits.task import WEIGHTS, load_weights

    return load_weights(DigitsMLP(), (WEIGHTS if folder is None else folder) / "mlp_flow.safetensors")[0]
