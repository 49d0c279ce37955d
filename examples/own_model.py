"""P-GRAFT on a model of one's own: whole rounds with a budget, checkpoints and resume.

python examples/own_model.py
"""

import copy

import torch
from safetensors.torch import load_file
from torch import nn

import pgraft_fast as pf


class Denoiser(nn.Module):
    """model(x, t) -> epsilon, for points in the plane; t = 1 is noise, t = 0 data."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat((x, t.view(-1, 1)), dim=1))


def base(schedule: pf.Schedule, steps: int) -> Denoiser:
    """A model of points on a ring."""
    torch.manual_seed(0)
    model = Denoiser()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        angle, t, noise = 6.283 * torch.rand(256), torch.rand(256), torch.randn(256, 2)
        x_0 = torch.stack((angle.cos(), angle.sin()), dim=1)
        alpha, sigma = (value.view(-1, 1) for value in schedule.alpha_sigma(t))
        loss = (model(alpha * x_0 + sigma * noise, t) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def to_the_right(x_0: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return x_0[:, 0]


def main(run: str = "runs/ring", steps: int = 2000, rounds: int = 2) -> tuple[float, float]:
    schedule = pf.Schedule.vp_linear()
    model = base(schedule, steps)
    config = pf.PGraftConfig(
        prompts=32, candidates=8, cut=0.25, rounds=rounds, epochs=150, batch_size=64, learning_rate=1e-3,
        evaluate=1024, budget=pf.Budget(wall_seconds=600.0), run=run,
    )  # fmt: skip
    result = pf.PGraftTrainer.from_model(model, schedule, to_the_right, config=config, shape=(2,)).train()

    # All weights were trained, of a copy: above the cut it draws, below it the model itself.
    tuned = copy.deepcopy(model)
    tuned.load_state_dict(load_file(result.adapter))
    draw = {"shape": (2,), "n": 1024, "steps": 25, "seed": 1}
    before = pf.rollout(model, schedule, **draw).x_0
    after = pf.rollout(model, schedule, tuned=tuned, cut=result.cut, **draw).x_0
    return float(before[:, 0].mean()), float(after[:, 0].mean())


if __name__ == "__main__":
    print("mean of the first coordinate: {:.3f} -> {:.3f}".format(*main()))
