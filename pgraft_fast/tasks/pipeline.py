"""Any diffusers pipeline as a task: its own loop is the model, its own epilogue makes what is scored."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Learner, Prompts, TrainSettings
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.driver import Driver
from pgraft_fast.pipelines.facts import Facts
from pgraft_fast.pipelines.grouping import rows_by
from pgraft_fast.pipelines.learners import FullLearner, LoraLearner
from pgraft_fast.pipelines.loras import Lora
from pgraft_fast.pipelines.media import Medium, differ, media_of, medium_of, picture_of, pixels_of, stacked, wav_of
from pgraft_fast.rewards.protocol import as_call, name_of
from pgraft_fast.sampling.rounding import allowed_for
from pgraft_fast.tasks.base import Task
from pgraft_fast.tasks.perceptual import perceptual_hash
from pgraft_fast.tasks.pictures import thumbnail_features

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Measures:
    """What is measured beside the reward. features(pictures in [-1, 1]) -> (n, d): space of the distances. reference:
    features (m, d) to compare with, or None. categories: of the held-out prompts, or empty. contents: of features and
    reference, as JSON.
    """

    features: Callable[[Tensor], Tensor] = thumbnail_features
    reference: Tensor | None = None
    categories: tuple[str, ...] = ()
    contents: Mapping[str, Any] = field(default_factory=dict)


def pipeline_task(
    facts: Facts, train: Sequence[str], held_out: Sequence[str], lora: Lora, seed: int, *,
    guidance_tuned: float | None = None, measures: Measures | None = None, null: int | None = None, at_once: int = 8,
    rate: float | None = None, mesh: "DeviceMesh | None" = None,
) -> tuple[Task, "Finish"]:  # fmt: skip
    """The task, whose samples are the pipeline's states, and what makes media of them.

    train, held_out: names of the prompts of `facts.guided.calls`, first those that are trained on, no two alike.
    guidance_tuned: scale of the tuned model, default that of all. null: number of the prompt that stands for none.
    at_once: samples that are decoded together, halved when memory is full. rate: of audio, in samples a second. mesh:
    over which the denoiser is sharded once its learner is made.
    """
    model, measures = Driven.of(facts), Measures() if measures is None else measures
    finish = Finish(model, [*train, *held_out], at_once)

    def pictures(states: Tensor, condition: Tensor | None) -> np.ndarray:
        return np.stack([picture_of(sample) for sample in finish.media(states)])

    def same(states: Tensor, condition: Tensor | None) -> Tensor:
        return perceptual_hash(np.concatenate([pictures(part, None) for part in states.split(100)])).to(states.device)

    task = Task(
        name=type(facts.pipe).__name__,
        model=model,
        schedule=facts.schedule_of_run,
        parameterization=facts.parameterization,
        shape=facts.shape,
        prompts=_prompts(model, train, 0, null, same),
        held_out=_prompts(model, held_out, len(train), null, same),
        categories=measures.categories,
        rewards={},
        features=lambda states, condition: _features(finish, measures.features, states),
        data=measures.reference,
        pictures=pictures,
        identity={},
        sounds=None if rate is None or finish.medium != "audio" else lambda states: finish.sounds(states, rate),
        learner=lambda settings: _learner(model, settings, lora, seed, guidance_tuned, mesh),
    )
    return task, finish


class Finish:
    """media(states): what the pipeline returns for final states, by its own epilogue.

    Loops of its own, so that a thread that scores may finish samples while another one draws. Whether samples may be
    finished `together`, and with any prompt, is checked once: some pipelines sort what they made by its prompt.
    """

    def __init__(self, model: Driven, names: Sequence[str], at_once: int = 8) -> None:
        way, self._team = model.facts.guided, model.facts.team
        self._driver, self._first = Driver(way.calls, way.state), media_of(model.facts.media)[0]
        self._number = {name: number for number, name in reversed(list(enumerate(names)))}
        self._prompts = way.calls.prompts
        self._size, self._any_prompt = BatchSize(1, "decoding"), False
        self.together = self._check(way.calls.rows)
        self.at_once = at_once if self.together else 1

    @property
    def at_once(self) -> int:
        """Samples that are finished together, halved when memory is full."""
        return self._size.value

    @at_once.setter
    def at_once(self, value: int) -> None:
        self._size.value = value

    @property
    def medium(self) -> Medium:
        """Of the pipeline."""
        return medium_of(self._first)

    def text(self, name: str) -> str:
        """The prompt of a name."""
        return str(self._prompts[self._number[name]])

    def media(self, states: Tensor, names: Sequence[str] | None = None) -> list[np.ndarray]:
        """One array a sample. names: of their prompts; without, all are finished in a call with the first prompt."""
        numbers = [0] * len(states) if names is None or self._any_prompt else [self._number[name] for name in names]
        media: list[np.ndarray] = [np.empty(0)] * len(states)
        for number, of_prompt in rows_by(numbers).items():
            left = of_prompt
            while left:
                samples = self._size.run(partial(self._finished, states, left, number))
                for row, sample in zip(left, samples, strict=False):
                    media[row] = sample
                left = left[len(samples) :]
        return media

    def sounds(self, states: Tensor, rate: float) -> list[bytes]:
        """WAV files of audio."""
        return [wav_of(sample, rate) for sample in self.media(states)]

    def decoded(self, states: Tensor, names: Sequence[str]) -> tuple[Tensor, list[str]]:
        """For rewards: pictures (B, H, W, 3) uint8, videos (B, F, H, W, 3) uint8, audio (B, channels, samples); the
        prompts.
        """
        return stacked(self.media(states, names)), [self.text(name) for name in names]

    def pixels(self, states: Tensor, names: Sequence[str]) -> tuple[Tensor, list[str]]:
        """As `decoded`; pictures as (B, 3, H, W) in [-1, 1]."""
        media, texts = self.decoded(states, names)
        return pixels_of(media) if self.medium == "image" else media, texts

    def _finished(self, states: Tensor, rows: Sequence[int], number: int, size: int) -> list[np.ndarray]:
        """Of the first of these rows."""
        try:
            with self._team(1):
                return media_of(self._driver.finish(states[rows[:size]], number))
        finally:
            self._driver.close()

    def _check(self, rows: int) -> bool:
        """Whether samples may be finished together."""
        state = self._driver.state
        states = torch.randn(2, *state.shape, generator=torch.Generator().manual_seed(0))
        alone = [self._finished(states, [row], 0, 1)[0] for row in (0, 1)]
        allowed = allowed_for(state.dtype, state.device)
        if len(self._prompts) > 1:
            self._any_prompt = not differ(self._finished(states, [0], 1, 1), alone[:1], allowed)
        return rows > 1 and not differ(self._finished(states, [0, 1], 0, 2), alone, allowed)


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
        arguments = {"rate": rate} if "rate" in inspect.signature(reward).parameters else {}
    except (TypeError, ValueError):
        arguments = {}
    call = as_call(reward) if not arguments else as_call(lambda media, prompts: reward(media, prompts, **arguments))

    def scored(samples: Tensor, prompts: Sequence[str], sample_ids: Sequence[int], on_wait: Any) -> object:
        media: Any = pixels_of(samples) if takes == "pixels" else [sample.numpy() for sample in samples]
        return call(media, prompts, sample_ids, on_wait)

    scored.__name__ = name_of(reward)
    return scored


def _prompts(
    model: Driven, texts: Sequence[str], first: int, null: int | None, same: Callable[[Tensor, Tensor | None], Tensor]
) -> Prompts:  # fmt: skip
    def prepare(numbers: Tensor) -> None:
        model.prepare([*(first + numbers.unique()).tolist(), *([] if null is None else [null])])

    condition = torch.arange(first, first + len(texts))
    return Prompts(texts, condition, None if null is None else torch.tensor(null), prepare, same=same)


def _learner(
    model: Driven, settings: TrainSettings, lora: Lora, seed: int, guidance: float | None, mesh: "DeviceMesh | None"
) -> Learner:
    if mesh is not None:
        # Its libraries take a second to load.
        from pgraft_fast.pipelines.sharded import ShardedFullLearner, ShardedLoraLearner

        if lora.rank == 0:
            return ShardedFullLearner(model, settings, mesh, guidance)
        return ShardedLoraLearner(model, settings, lora, seed, mesh, guidance)
    if lora.rank == 0:
        return FullLearner(model, settings, guidance)
    return LoraLearner(model, settings, lora, seed, guidance)


def _features(finish: Finish, features: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([
            features(pixels_of(stacked([picture_of(sample) for sample in finish.media(part)]))).flatten(1).cpu()
            for part in states.split(100)
        ])  # fmt: skip
