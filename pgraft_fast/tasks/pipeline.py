"""Any diffusers pipeline as a task: its own loop is the model, its own epilogue makes what is scored."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Learner, Prompts, TrainSettings
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import Facts
from pgraft_fast.pipelines.grouping import rows_by
from pgraft_fast.pipelines.media import Medium, media_of, medium_of, picture_of, pixels_of, stacked
from pgraft_fast.rewards.protocol import as_call, name_of
from pgraft_fast.tasks.base import Task
from pgraft_fast.tasks.pictures import thumbnail_features
from pgraft_fast.text_to_image import FullLearner, LoraLearner, LoraSettings

# Samples that are decoded together.
_AT_ONCE = 8


def pipeline_task(
    facts: Facts, train: Sequence[str], held_out: Sequence[str], lora: LoraSettings, seed: int
) -> tuple[Task, "Finish"]:
    """The task, whose samples are the pipeline's states, and what makes media of them.

    train, held_out: names of the prompts of `facts.guided.calls`, first those that are trained on, no two alike.
    """
    model = Driven.of(facts)
    finish = Finish(model, [*train, *held_out])
    schedule = facts.schedule if facts.begin > 0.999 else facts.schedule.starting_at(facts.begin)
    task = Task(
        name=type(facts.pipe).__name__,
        model=model,
        schedule=schedule,
        parameterization=facts.parameterization,
        shape=facts.shape,
        prompts=_prompts(train, 0),
        held_out=_prompts(held_out, len(train)),
        rewards={},
        features=lambda states: _features(finish, states),
        data=None,
        pictures=lambda states: np.stack([picture_of(one) for one in finish.media(states)]),
        identity={},
        learner=lambda settings: _learner(model, settings, lora, seed),
    )
    return task, finish


class Finish:
    """media(states): what the pipeline returns for final states, by its own epilogue."""

    def __init__(self, model: Driven, names: Sequence[str]) -> None:
        self._model = model
        self._number = {name: number for number, name in reversed(list(enumerate(names)))}
        self._prompts = model.facts.guided.calls.prompts

    @property
    def medium(self) -> Medium:
        """Of the pipeline."""
        return medium_of(media_of(self._model.facts.media)[0])

    def text(self, name: str) -> str:
        """The prompt of a name."""
        return str(self._prompts[self._number[name]])

    def media(self, states: Tensor, names: Sequence[str] | None = None) -> list[np.ndarray]:
        """One array a sample. names: of their prompts; without, all are finished in a call with the first prompt."""
        numbers = [0] * len(states) if names is None else [self._number[name] for name in names]
        found: list[np.ndarray] = [np.empty(0)] * len(states)
        count = _AT_ONCE if self._model.facts.guided.calls.rows > 1 else 1
        for number, of_prompt in rows_by(numbers).items():
            for low in range(0, len(of_prompt), count):
                rows = of_prompt[low : low + count]
                for row, made in zip(rows, media_of(self._model.finish(states[rows], number)), strict=True):
                    found[row] = made
        return found

    def decoded(self, states: Tensor, names: Sequence[str]) -> tuple[Tensor, list[str]]:
        """For rewards: pictures (B, H, W, 3) uint8, videos (B, F, H, W, 3) uint8, audio (B, channels, samples); the
        prompts.
        """
        return stacked(self.media(states, names)), [self.text(name) for name in names]


def of_media(reward: Callable[..., object], medium: Medium, rate: float | None = None) -> Callable[..., object]:
    """A user's reward(media, prompts), media being a list of arrays, or one of ours that takes pictures in [-1, 1].

    rate: frames or samples a second, given to rewards with a parameter of this name. A reward may name its `medium`:
    "image", "video", "audio", or "pixels" for pictures in [-1, 1]. Raises InputError where it is another.
    """
    ours = (getattr(reward, "__module__", None) or type(reward).__module__).startswith("pgraft_fast.")
    takes = getattr(reward, "medium", "pixels" if ours else medium)
    if takes != medium and not (takes == "pixels" and medium == "image"):
        raise InputError(f"reward {name_of(reward)!r} takes {takes}, the pipeline makes {medium}")
    try:
        given = {"rate": rate} if "rate" in inspect.signature(reward).parameters else {}
    except (TypeError, ValueError):
        given = {}
    call = as_call(reward) if not given else as_call(lambda media, prompts: reward(media, prompts, **given))

    def scored(samples: Tensor, prompts: Sequence[str], sample_ids: Sequence[int], on_wait: Any) -> object:
        media: Any = pixels_of(samples) if takes == "pixels" else [one.numpy() for one in samples]
        return call(media, prompts, sample_ids, on_wait)

    scored.__name__ = name_of(reward)
    return scored


def _prompts(texts: Sequence[str], first: int) -> Prompts:
    return Prompts(texts, torch.arange(first, first + len(texts)))


def _learner(model: Driven, settings: TrainSettings, lora: LoraSettings, seed: int) -> Learner:
    return FullLearner(model, settings) if lora.rank == 0 else LoraLearner(model, settings, lora, seed)


def _features(finish: Finish, states: Tensor) -> Tensor:
    pictures = pixels_of(stacked([picture_of(one) for one in finish.media(states)]))
    with torch.no_grad():
        return thumbnail_features(pictures).flatten(1).cpu()
