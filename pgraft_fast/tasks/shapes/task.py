"""What a run on the shapes world works with."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.tasks.prompt_files import PromptFile
from pgraft_fast.tasks.shapes.checker import reward
from pgraft_fast.tasks.shapes.features import features
from pgraft_fast.tasks.shapes.pipeline import shapes_pipeline
from pgraft_fast.tasks.shapes.prompts import Prompt, test_prompts, train_prompts
from pgraft_fast.tasks.shapes.render import render

_REFERENCE = 2048


@dataclass(frozen=True)
class ShapesParts:
    """pipe: the shipped model. train, held_out: prompts. features(pictures) -> (n, d); reference(): those of rendered
    held-out prompts, a second of work. rewards: "questions", the share of a prompt's questions that a picture answers
    rightly.
    """

    pipe: Any
    train: PromptFile
    held_out: PromptFile
    features: Callable[[Tensor], Tensor]
    reference: Callable[[], Tensor]
    rewards: Mapping[str, Callable[..., object]]


def shapes_parts(kind: str) -> ShapesParts:
    """Load the model of a kind, "sd" or "sd3". Raises InputError, CheckpointError."""
    return ShapesParts(
        pipe=shapes_pipeline(kind),
        train=_file(train_prompts()),
        held_out=_file(in_turn(test_prompts())),
        features=features,
        reference=_reference,
        rewards={"questions": questions},
    )


def questions(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """(B,) in [0, 1]: see `checker.reward`."""
    return reward(samples, prompts)


def in_turn(prompts: Sequence[Prompt]) -> list[Prompt]:
    """One of each category, then another of each: the first few hundred hold all categories alike."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.category, []).append(prompt)
    longest = max(len(group) for group in groups.values())
    return [group[row] for row in range(longest) for group in groups.values() if row < len(group)]


@functools.cache
def _reference() -> Tensor:
    chosen = in_turn(test_prompts())
    prompts = [chosen[row % len(chosen)] for row in range(_REFERENCE)]
    with torch.no_grad():
        return features(render(prompts, seed=1))


def _file(prompts: Sequence[Prompt]) -> PromptFile:
    return PromptFile(tuple(prompt.text for prompt in prompts), tuple(prompt.category for prompt in prompts))
