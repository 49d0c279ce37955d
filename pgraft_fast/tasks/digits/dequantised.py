"""A small flow of dequantised digits: the base of inverse noise correction.

The scans have 17 grey levels, so their law has no density; with noise of standard deviation 0.2 added it has one, and a
flow can be inverted on it (arXiv 2510.02692 perturbs its images, too).
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pgraft_fast.diagnostics import frechet_distance
from pgraft_fast.diffusion import Stream, normal
from pgraft_fast.inverse_noise import FitSettings, Interpolant, Rows, fit_field, generate
from pgraft_fast.inverse_noise.networks import Perceptron, make_field
from pgraft_fast.tasks.digits.data import SHAPE, load_digits
from pgraft_fast.tasks.digits.shipped import WEIGHTS
from pgraft_fast.tasks.digits.task import DigitsSettings, digits_task
from pgraft_fast.tasks.flow import FlowTask
from pgraft_fast.tasks.weights import load_weights

SIGMA = 0.2
# Of limited capacity, as the paper's base is for its data.
NETWORK = {"kind": "perceptron", "width": 256, "depth": 3}
_FIT = FitSettings(steps=4000, batch_size=256, learning_rate=1e-3, ema=0.995)


def dequantised(split: str, n: int, seed: int) -> Tensor:
    """(n, 1, 8, 8) digits of "train" or "held_out" in turn, each with its own noise."""
    return _perturbed(split, torch.arange(n), seed)


def _perturbed(split: str, index: Tensor, seed: int) -> Tensor:
    images = load_digits(split).images
    return images[index % images.shape[0]] + SIGMA * normal(seed, index, 0, SHAPE, Stream.DATA_NOISE)


def train_mlp_flow(
    seed: int, steps: int | None = None, log: Callable[[str], None] = print, check: Callable[[], None] = lambda: None
) -> nn.Module:
    """Flow matching on the training digits with fresh noise in each step; returns the averaged weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_field(SHAPE, NETWORK)
    settings = FitSettings(**{**vars(_FIT), "seed": seed, "steps": _FIT.steps if steps is None else steps})
    source = Rows(load_digits("train").images, SIGMA, seed)
    return fit_field(network, source, Interpolant("linear"), settings, log=log, check=check).network


def mlp_flow_quality(model: nn.Module, classifier: nn.Module) -> dict[str, float]:
    """Frechet distances of 10,000 samples at 20 and 200 Euler steps to as many dequantised training digits, and of as
    many others of these: the floor.
    """
    n = 10_000
    with torch.no_grad():
        features: Callable[[Tensor], Tensor] = classifier.features  # type: ignore[assignment]
        reference = features(dequantised("train", n, 1))
        noise = normal(2, torch.arange(n), 0, SHAPE)
        distances = {"fd_floor": frechet_distance(features(dequantised("train", n, 3)), reference)}
        for steps in (20, 200):
            distances[f"fd_{steps}_steps"] = frechet_distance(features(generate(model, noise, steps)), reference)
        return distances


def load_mlp_flow(folder: Path | None = None) -> Perceptron:
    """The shipped base, or that of a folder made by `train-base`. Raises CheckpointError."""
    path = (WEIGHTS if folder is None else folder) / "mlp_flow.safetensors"
    return load_weights(Perceptron(SHAPE, NETWORK["width"], NETWORK["depth"]), path)[0]  # type: ignore[arg-type]


def digits_flow_task(seed: int = 0) -> FlowTask:
    """Dequantised digits with the shipped base. Raises CheckpointError for missing or damaged weights."""
    task = digits_task(DigitsSettings())
    return FlowTask(
        name="digits",
        shape=SHAPE,
        source=Rows(load_digits("train").images, SIGMA, seed),
        draw=lambda index, noise_seed: _perturbed("train", index, noise_seed),
        network=NETWORK,
        base=load_mlp_flow(),
        features=lambda x: task.features(x, None),
        feature_name="digit classifier, 32 features",
        pictures=lambda x: task.pictures(x, None),
        data=load_digits("train").images,
        identity={"data": "digits", "sigma": SIGMA, "size": math.prod(SHAPE), **task.identity},
    )
