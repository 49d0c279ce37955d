"""The digits task: shipped models, classifier, rewards."""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pgraft_fast.finetune import Prompts
from pgraft_fast.rewards import stroke_mass, symmetry
from pgraft_fast.schema import Name, Settings
from pgraft_fast.tasks.base import Task
from pgraft_fast.tasks.digits.classifier import DigitsClassifier
from pgraft_fast.tasks.digits.data import N_CLASSES, SHAPE, load_digits
from pgraft_fast.tasks.digits.dit import NULL_LABEL, DigitsDiT
from pgraft_fast.tasks.digits.shipped import VARIANTS, WEIGHTS
from pgraft_fast.tasks.perceptual import perceptual_hash
from pgraft_fast.tasks.weights import load_weights


class DigitsSettings(Settings):
    """[task] of a digits run.

    variant: the shipped variance-preserving or flow model. conditional: ten prompts, one a digit; else one prompt.
    reward: symmetry, stroke_mass, label (probability of the prompted digit), digit_0 ... digit_9 (probability of that
    digit), or file.py:function. weights: a folder made by `train-base` in place of the shipped one.
    """

    name: Literal["digits"] = "digits"
    variant: Literal["vp", "flow"] = "vp"
    conditional: bool = True
    reward: Name = "symmetry"
    weights: Name | None = None


def digits_task(settings: DigitsSettings) -> Task:
    """Load the models. Raises CheckpointError for missing or damaged weights."""
    folder = WEIGHTS if settings.weights is None else Path(settings.weights)
    variant = VARIANTS[settings.variant]
    model, model_hash = load_weights(DigitsDiT(), folder / f"{settings.variant}.safetensors")
    classifier, classifier_hash = load_weights(DigitsClassifier(), folder / "classifier.safetensors")
    names, labels = [str(d) for d in range(N_CLASSES)], torch.arange(N_CLASSES)
    if settings.conditional:
        prompts = Prompts(names, labels, torch.tensor(NULL_LABEL), same=_same)
    else:
        prompts = Prompts(["any digit"], same=_same)

    def features(samples: Tensor, condition: Tensor | None) -> Tensor:
        with torch.no_grad():
            return classifier.features(samples)

    return Task(
        name="digits",
        model=model,
        schedule=variant.schedule,
        parameterization=variant.parameterization,
        shape=SHAPE,
        prompts=prompts,
        rewards={
            "symmetry": symmetry,
            "stroke_mass": stroke_mass,
            "label": partial(_label_probability, classifier),
            **{f"digit_{d}": partial(_digit_probability, classifier, d) for d in range(N_CLASSES)},
        },
        features=features,
        data=features(load_digits("train").images, None),
        pictures=_pictures,
        identity={"model_sha256": model_hash, "classifier_sha256": classifier_hash},
    )


def _digit_probability(classifier: nn.Module, digit: int, samples: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(samples).softmax(dim=1)[:, digit]


def _label_probability(classifier: nn.Module, samples: Tensor, prompts: list[str]) -> Tensor:
    with torch.no_grad():
        probability = classifier(samples).softmax(dim=1)
    labels = torch.tensor([int(text) if text.isdigit() else -1 for text in prompts])
    chosen = probability.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(labels >= 0, chosen, torch.full_like(chosen, torch.nan))


def _same(samples: Tensor, condition: Tensor | None) -> Tensor:
    return perceptual_hash(_pictures(samples, condition)).to(samples.device)


def _pictures(samples: Tensor, condition: Tensor | None) -> np.ndarray:
    """Black ink on white paper."""
    ink = (samples[:, 0].clamp(-1.0, 1.0) + 1.0) / 2.0
    return (255.0 * (1.0 - ink)).round().to(torch.uint8).cpu().numpy()
