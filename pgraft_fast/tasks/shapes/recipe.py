"""The recipe of the shipped weights: autoencoder, feature network, both denoisers; about forty minutes on one core.

`pgraft-fast train-base shapes` runs it. Every number that decides the result stands here and in `training`. A last
part of each denoiser's training has half of its captions at the wrong picture, as much of the web has: the model knows
how to draw what it is asked for, and often draws something else. That is what rewards are for.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pgraft_fast.files import to_json, write_file
from pgraft_fast.tasks.shapes.checker import reward
from pgraft_fast.tasks.shapes.evaluation import quality
from pgraft_fast.tasks.shapes.features import FactsNetwork, facts
from pgraft_fast.tasks.shapes.pipeline import KINDS, TRAINED, load_part, make_parts, save_part, shapes_pipeline
from pgraft_fast.tasks.shapes.prompts import Prompt
from pgraft_fast.tasks.shapes.render import scene
from pgraft_fast.tasks.shapes.training import encode, mislabelled, train_sd, train_sd3, train_vae, training_set

Log = Callable[[str], None]
Check = Callable[[], None]


@dataclass(frozen=True)
class Cycle:
    """steps: of one rise and fall of the learning rate. rate: its highest. wrong: share of captions that belong to
    another picture of the category.
    """

    steps: int
    rate: float = 1.5e-3
    wrong: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """pictures: training pictures. vae, features: training steps. judged: pictures of each category in the figures."""

    pictures: int = 24_000
    vae: int = 1_200
    features: int = 1_500
    sd: tuple[Cycle, ...] = (Cycle(6_000), Cycle(2_000, 1e-3, 0.5))
    sd3: tuple[Cycle, ...] = (Cycle(5_000), Cycle(1_500, 1e-3, 0.5))
    judged: int = 170


def train_all(
    folder: Path, seed: int = 0, log: Log = print, check: Check = lambda: None, sizes: Sizes | None = None
) -> dict[str, Any]:
    """Train everything, write the weights and figures.json into `folder`, return the figures.

    check: called in each step; what it raises ends the training. Raises StorageError.
    """
    sizes = sizes or Sizes()
    began = time.perf_counter()
    pictures, prompts = training_set(sizes.pictures, seed)
    log(f"{sizes.pictures} pictures of {len({p.key for p in prompts})} training combinations")
    vae = train_vae(pictures, seed, sizes.vae, log, check)
    save_part(vae, folder / "vae.safetensors")
    # As it is shipped: in float16's rounding.
    load_part(vae, folder / "vae.safetensors")
    figures: dict[str, Any] = {"seed": seed, "vae": vae_quality(vae, pictures[:3000], prompts)}
    log(f"vae: {100 * figures['vae']['all_right']:.1f} % of pictures right after encoding and decoding")
    network = train_features(pictures, prompts, seed, sizes.features, check)
    save_part(network, folder / "features.safetensors")
    latents = encode(vae, pictures, check)
    for kind in KINDS:
        figures[kind] = _train_kind(kind, vae, latents, prompts, folder, seed, sizes, log, check)
    figures["seconds"] = time.perf_counter() - began
    write_file(folder / "figures.json", to_json(figures))
    return figures


def _train_kind(
    kind: str, vae: Any, latents: Tensor, prompts: list[Prompt], folder: Path, seed: int, sizes: Sizes, log: Log,
    check: Check,
) -> dict[str, Any]:  # fmt: skip
    began = time.perf_counter()
    torch.manual_seed(seed)
    train, cycles = {"sd": (train_sd, sizes.sd), "sd3": (train_sd3, sizes.sd3)}[kind]
    parts = make_parts(kind)
    for i, cycle in enumerate(cycles):
        # From the averaged weights of the cycle before, with other numbers.
        captions = mislabelled(prompts, cycle.wrong, seed)
        parts = train(parts, latents, captions, seed + i, cycle.steps, cycle.rate, log, check)
    seconds = time.perf_counter() - began
    for name in TRAINED[kind]:
        save_part(parts[name], folder / kind / f"{name}.safetensors")
    pipe = shapes_pipeline(kind, folder)
    figures = {
        **quality(pipe, sizes.judged, seed, check=check),
        "parameters": sum(p.numel() for name in TRAINED[kind] for p in parts[name].parameters()),
        "training_seconds": seconds,
    }
    shares = ", ".join(f"{name} {100 * share:.0f}" for name, share in figures["by_category"].items())
    log(f"{kind}: {100 * figures['questions_right']:.1f} % of questions right ({shares})")
    return figures


def vae_quality(vae: Any, pictures: Tensor, prompts: list[Prompt]) -> dict[str, float]:
    """Of pictures (n, 3, 32, 32) uint8 encoded and decoded: share with all questions right, mean squared error."""
    x = pictures.float().div(127.5).sub(1.0)
    with torch.no_grad():
        out = torch.cat([vae.decode(z).sample for z in encode(vae, pictures).split(256)])
    shares = reward(out, prompts[: len(pictures)])
    return {
        "all_right": float((shares == 1.0).float().mean()),
        "squared_error": float((out - x).square().mean()),
        "parameters": sum(p.numel() for p in vae.parameters()),
    }


def train_features(
    pictures: Tensor, prompts: list[Prompt], seed: int, steps: int, check: Check = lambda: None
) -> FactsNetwork:
    """Cross entropy of the facts of training pictures (n, 3, 32, 32) uint8, drawn with `seed` and noised a little."""
    torch.manual_seed(seed)
    network = FactsNetwork()
    target = facts([scene(prompt, seed, i) for i, prompt in enumerate(prompts)])
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(2, steps))
    for _ in range(steps):
        rows = torch.randint(len(prompts), (128,))
        x = pictures[rows].float().div(127.5).sub(1.0)
        x = x + 0.2 * torch.rand(128, 1, 1, 1) * torch.randn_like(x)
        loss = F.binary_cross_entropy_with_logits(network(x), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        check()
    return network.requires_grad_(False).eval()
