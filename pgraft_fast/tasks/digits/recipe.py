"""The recipe of the shipped weights: a classifier, two transformers and a small flow, about seven minutes on two cores.

`pgraft-fast train-base digits` runs it. Every number that decides the result stands in this file.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgraft_fast.diagnostics import frechet_distance
from pgraft_fast.diffusion import target_coefficients
from pgraft_fast.files import to_json, write_file
from pgraft_fast.finetune.checkpoint import tensor_bytes
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.optimizing import follow, warmed_up
from pgraft_fast.sampling import rollout
from pgraft_fast.tasks.digits.classifier import DigitsClassifier
from pgraft_fast.tasks.digits.data import SHAPE, Digits, load_digits
from pgraft_fast.tasks.digits.dequantised import mlp_flow_quality, train_mlp_flow
from pgraft_fast.tasks.digits.dit import NULL_LABEL, DigitsDiT
from pgraft_fast.tasks.digits.shipped import VARIANTS
from pgraft_fast.tasks.weights import Variant

Log = Callable[[str], None]

_CLASSIFIER_EPOCHS = 30
_STEPS = 5000
_BATCH = 128
_LEARNING_RATE = 2e-3
_LABEL_DROPOUT = 0.3
_EMA = 0.998
_MIN_TIME = 1e-3


def train_all(
    folder: Path, seed: int = 0, log: Log = print, check: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Train everything, write the safetensors into `folder`, return what was measured."""
    began = time.perf_counter()
    classifier = train_classifier(seed, check)
    accuracy = classifier_accuracy(classifier, load_digits("held_out"))
    log(f"classifier: {100 * accuracy:.1f} % of the held-out digits right")
    _save(folder / "classifier.safetensors", classifier, {"held_out_accuracy": accuracy})
    measured: dict[str, Any] = {"classifier": {"held_out_accuracy": accuracy}}
    for name, variant in VARIANTS.items():
        model = train_base(variant, seed, log=partial(_named, log, name), check=check)
        measured[name] = base_quality(model, variant, classifier)
        log(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in measured[name].items()))
        _save(folder / f"{name}.safetensors", model, measured[name])
    base = train_mlp_flow(seed, log=partial(_named, log, "mlp_flow"), check=check)
    measured["mlp_flow"] = mlp_flow_quality(base, classifier)
    log("mlp_flow: " + ", ".join(f"{key} {value:.2f}" for key, value in measured["mlp_flow"].items()))
    _save(folder / "mlp_flow.safetensors", base, measured["mlp_flow"])
    measured["seconds"] = time.perf_counter() - began
    return measured


def train_classifier(
    seed: int, check: Callable[[], None] = lambda: None, epochs: int = _CLASSIFIER_EPOCHS
) -> DigitsClassifier:
    """Cross entropy with label smoothing on noised training digits."""
    torch.manual_seed(seed)
    data, model = load_digits("train"), DigitsClassifier()
    n, size = data.labels.numel(), 64
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * (n // size))
    for _ in range(epochs):
        for rows in torch.randperm(n)[: n - n % size].split(size):
            noise = 0.3 * torch.rand(size, 1, 1, 1) * torch.randn(size, *SHAPE)
            loss = F.cross_entropy(model(data.images[rows] + noise), data.labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
        check()
    return model.eval()


def classifier_accuracy(classifier: nn.Module, data: Digits) -> float:
    """Share of digits recognised."""
    with torch.no_grad():
        return float((classifier(data.images).argmax(1) == data.labels).float().mean())


def train_base(
    variant: Variant,
    seed: int,
    steps: int = _STEPS,
    log: Log = print,
    check: Callable[[], None] = lambda: None,
    **architecture: int,
) -> DigitsDiT:
    """Ordinary denoising regression on the training digits, with dropped labels; returns the averaged weights."""
    torch.manual_seed(seed)
    data, model = load_digits("train"), DigitsDiT(**architecture)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=max(2, steps), pct_start=0.05)
    for step in range(steps):
        rows = torch.randint(0, data.labels.numel(), (_BATCH,))
        dropped = torch.rand(_BATCH) < _LABEL_DROPOUT
        label = torch.where(dropped, torch.full_like(data.labels[rows], NULL_LABEL), data.labels[rows])
        loss = _denoising_loss(model, variant, data.images[rows], label)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        follow(average.parameters(), model.parameters(), warmed_up(_EMA, step))
        check()
        if (step + 1) % 1000 == 0:
            log(f"step {step + 1} of {steps}, loss {float(loss.detach()):.3f}")
    return average.requires_grad_(False).eval()


def base_quality(model: DigitsDiT, variant: Variant, classifier: DigitsClassifier, steps: int = 50) -> dict[str, float]:
    """Frechet distances of 1,437 samples (DDPM) to the training digits, with and without labels;
    share of labelled samples that the classifier reads as their label; and the same distance of held-out digits.
    """
    train, held_out = load_digits("train"), load_digits("held_out")
    run = Execution("eager", next(model.parameters()).device).of(model)

    def draw(label: Tensor | None) -> Tensor:
        n = train.labels.numel()
        return rollout(
            run, variant.schedule, shape=SHAPE, n=n, steps=steps, solver="ddpm", condition=label,
            parameterization=variant.parameterization,
        ).x_0  # fmt: skip

    labelled, unlabelled = draw(train.labels), draw(None)
    with torch.no_grad():
        reference = classifier.features(train.images)
        return {
            "fd_conditional": frechet_distance(classifier.features(labelled), reference),
            "fd_unconditional": frechet_distance(classifier.features(unlabelled), reference),
            "label_accuracy": classifier_accuracy(classifier, Digits(labelled, train.labels)),
            "fd_held_out_digits": frechet_distance(classifier.features(held_out.images), reference),
        }


def _denoising_loss(model: nn.Module, variant: Variant, x_0: Tensor, label: Tensor) -> Tensor:
    n = x_0.shape[0]
    # Times spread evenly over each batch.
    t = (torch.rand(1) + torch.arange(n) / n) % 1.0 * (1.0 - _MIN_TIME) + _MIN_TIME
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in variant.schedule.alpha_sigma(t))
    c, d = (value.view(-1, 1, 1, 1) for value in target_coefficients(variant.schedule, t, variant.parameterization))
    noise = torch.randn_like(x_0)
    out = model(alpha * x_0 + sigma * noise, t, label)
    return (out - (c * x_0 + d * noise)).square().mean()


def _named(log: Log, name: str, text: str) -> None:
    log(f"{name}: {text}")


def _save(path: Path, model: nn.Module, measured: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = to_json({"recipe": "pgraft-fast train-base digits", **measured}).decode()
    write_file(path, tensor_bytes(model.state_dict(), metadata))
