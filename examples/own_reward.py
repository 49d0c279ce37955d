"""Rewards with settings, several at once, and what they may ask for.

python examples/own_reward.py FOLDER
"""

import sys

import numpy as np
import torch
from diffusers import DiffusionPipeline

import pgraft_fast as pf


class Contrast:
    """A reward as an object. medium: what it takes; "pixels" are tensors (B, 3, H, W) in [-1, 1]."""

    medium = "pixels"
    name = "contrast"

    def __init__(self, goal: float) -> None:
        self.goal = goal

    def __call__(self, pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return -(pixels.flatten(1).std(dim=1) - self.goal).abs()


def dark(pictures: list[np.ndarray], prompts: list[str]) -> list[float | None]:
    """None for a picture that has no score: it is never selected."""
    return [None if picture.max() == 0 else -float(picture.mean()) / 255.0 for picture in pictures]


def main(folder: str, run: str = "runs/contrast", **options: object) -> pf.Result:
    pipe = DiffusionPipeline.from_pretrained(folder)
    config = pf.PGraftConfig(run=run, **{"budget": pf.Budget(gpu_hours=1.0), **options})
    prompts = ["a house by the sea", "a bowl of fruit", "a city at night"]
    return pf.PGraftTrainer(pipe, [(Contrast(0.5), 2.0), dark], prompts, config).train()


if __name__ == "__main__":
    print(main(sys.argv[1]).after)
