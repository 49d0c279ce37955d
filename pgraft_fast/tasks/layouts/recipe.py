"""The recipe of the shipped weights: two denoisers and the encoder of the Frechet distance, on the TeX pages.

`pgraft-fast train-base layouts` runs it, within two hours on two cores; on a GPU it takes minutes; with --data on a
user's own layouts. Every number that decides the result stands in this file and in `training`.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.diagnostics import frechet_distance
from pgraft_fast.files import to_json, write_file
from pgraft_fast.finetune.checkpoint import tensor_bytes
from pgraft_fast.sampling import rollout
from pgraft_fast.tasks.layouts import metrics
from pgraft_fast.tasks.layouts.conditions import KINDS, condition_of, counts_of, prompt_texts
from pgraft_fast.tasks.layouts.data import load_parts
from pgraft_fast.tasks.layouts.elements import Layouts, unpack
from pgraft_fast.tasks.layouts.features import LayoutEncoder, features_of, layout_features
from pgraft_fast.tasks.layouts.network import LayoutsDiT
from pgraft_fast.tasks.layouts.training import Amount, Check, Log, denoising_loss, train_denoiser, train_encoder
from pgraft_fast.tasks.layouts.variants import VARIANTS
from pgraft_fast.tasks.weights import load_weights

FEATURES = "features"
PARTS = (FEATURES, *VARIANTS)
# Of the shipped weights.
AMOUNTS = {FEATURES: Amount(steps=5_000, rate=1e-3), **dict.fromkeys(VARIANTS, Amount(steps=20_000))}
_SNAPSHOT_STEPS = 1_000


def train_all(
    folder: Path,
    seed: int = 0,
    log: Log = print,
    check: Check = lambda: None,
    sizes: Mapping[str, Amount] | None = None,
    device: torch.device | str = "cpu",
    data: str | None = None,
) -> dict[str, Any]:
    """Train everything, write the safetensors into `folder`, return what was measured. sizes: by part. data: see
    `load_parts`.
    """
    began = time.perf_counter()
    layouts = load_parts(data, log=log)
    for name in PARTS:
        amount = (sizes or {}).get(name, AMOUNTS[name])
        train_part(folder, name, amount, seed, partial(_named, log, name), check, device, layouts)
    figures = measured(folder, parts=layouts)
    for name in VARIANTS:
        log(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures[name].items()))
    return {**figures, "seconds": time.perf_counter() - began}


def train_part(
    folder: Path,
    name: str,
    amount: Amount,
    seed: int = 0,
    log: Log = print,
    check: Check = lambda: None,
    device: torch.device | str = "cpu",
    parts: tuple[Layouts, Layouts] | None = None,
) -> None:
    """One of PARTS, its weights into `folder` (those of a denoiser as float16, and so far as they are from time to
    time). parts: what is trained on and what is held out, of the shipped pages where there is none.
    """
    train, held_out = load_parts(None) if parts is None else parts
    if name == FEATURES:
        _save(folder, name, train_encoder(train, amount, seed, log, check, device), {})
        return
    snapshot = (_SNAPSHOT_STEPS, lambda model: _save(folder, name, model, {}))
    _save(folder, name, train_denoiser(VARIANTS[name], train, held_out, amount, seed, log, check, device, snapshot), {})


def measured(
    folder: Path, steps: int = 50, parts: tuple[Layouts, Layouts] | None = None, how: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Figures of the weights in a folder, written into their files as well: as many samples (DDPM) as there are
    held-out pages, 1,000 at most, for each kind of prompts, beside these pages. parts: see `train_part`. how: more for
    the files, of how the weights were made.

    fd: Frechet distance to the training pages. alignment and overlap x100, inside: share of elements. loss: of as many
    training pages; it is below loss_held_out as far as they were learned by heart.
    """
    train, held_out = load_parts(None) if parts is None else parts
    train, held_out = (part.rows(torch.arange(min(n, len(part)))) for part, n in ((train, 20_000), (held_out, 1_000)))
    encoder, _ = load_weights(LayoutEncoder(len(train.names)), folder / f"{FEATURES}.safetensors")
    with torch.no_grad():
        reference = features_of(encoder, train)
        data = {"fd_held_out": frechet_distance(features_of(encoder, held_out), reference)}
    data |= _figures(held_out.labels, held_out.boxes)
    origin = dict(how or {})
    _save(folder, FEATURES, encoder, origin | data)
    figures: dict[str, Any] = {"data": data}
    for name, variant in VARIANTS.items():
        model, _ = load_weights(LayoutsDiT(variant, len(train.names)), folder / f"{name}.safetensors")
        model.attention = "packed"
        measures = {
            "loss": _loss(model, train.rows(torch.arange(len(held_out)))),
            "loss_held_out": _loss(model, held_out),
        }
        for kind in KINDS:
            condition = condition_of(prompt_texts(held_out, kind, len(held_out)), train.names)
            samples = draw(model, condition, steps)
            end = "" if kind == "number" else f"_{kind}"
            features = layout_features(encoder, samples, condition)
            measures[f"fd{end}"] = frechet_distance(features, reference)
            measures |= {f"{key}{end}": v for key, v in _figures(*unpack(samples, counts_of(condition))).items()}
        figures[name] = measures
        _save(folder, name, model, origin | measures)
    return figures


def draw(model: LayoutsDiT, condition: Tensor, steps: int = 50, seed: int = 0) -> Tensor:
    """Samples (n, N, 4 + L) of conditions (n, N, 6) by DDPM."""
    shape = (condition.shape[1], 4 + model.n_labels)
    return rollout(
        model, model.variant.schedule, shape=shape, n=len(condition), steps=steps, solver="ddpm", seed=seed,
        condition=condition, parameterization=model.variant.parameterization, device=condition.device,
    ).x_0  # fmt: skip


def _loss(model: LayoutsDiT, layouts: Layouts) -> float:
    """Mean over 3 draws of times, noise and conditions, the same in each call."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = [denoising_loss(model, model.variant, layouts.labels, layouts.boxes) for _ in range(3)]
    return float(torch.stack(draws).mean())


def _figures(labels: Tensor, boxes: Tensor) -> dict[str, float]:
    return {
        "alignment": float(metrics.alignment(labels, boxes).nanmean()),
        "overlap": 100.0 * float(metrics.overlap(labels, boxes).nanmean()),
        "inside": float(metrics.inside(labels, boxes).nanmean()),
    }


def _named(log: Callable[[str], None], name: str, text: str) -> None:
    log(f"{name}: {text}")


def _save(folder: Path, name: str, model: nn.Module, figures: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    if name != FEATURES:
        weights = {key: value.to(torch.float16) for key, value in weights.items()}
    metadata = to_json({"recipe": "pgraft-fast train-base layouts", **figures}).decode()
    write_file(folder / f"{name}.safetensors", tensor_bytes(weights, metadata))
