"""The rewards of a config: which, with what weights, and what is done when one fails.

[[rewards]]
kind = "pick_score"
model = "models/PickScore_v1"

[[rewards]]
kind = "command"
command = "envs/ocr/bin/python serve.py scorer.py:score"
weight = 0.5

[policy]
on_failure = "drop"
"""

import difflib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.commands.reward_settings import (
    AestheticSettings,
    CallableSettings,
    ClipScoreSettings,
    CommandSettings,
    HttpSettings,
    JpegSettings,
    ModelSettings,
    PickScoreSettings,
    RewardSettings,
    TaskRewardSettings,
    VqaScoreSettings,
)
from pgraft_fast.errors import InputError
from pgraft_fast.rewards import PolicedReward, Policy, WeightedSum, load_reward
from pgraft_fast.rewards.aesthetic import AestheticScore
from pgraft_fast.rewards.clip_score import ClipScore, PickScore
from pgraft_fast.rewards.http import HttpReward
from pgraft_fast.rewards.jpeg import JpegSize
from pgraft_fast.rewards.local_models import DTYPES, what_is_missing
from pgraft_fast.rewards.process import CommandReward
from pgraft_fast.rewards.urls import with_variables
from pgraft_fast.rewards.vqa_score import VqaScore
from pgraft_fast.tasks.pipeline import Medium, of_media

_AESTHETIC = "sac+logos+ava1-l14-linearMSE.pth of github.com/christophschuhmann/improved-aesthetic-predictor"
_LOG = logging.getLogger("pgraft_fast.rewards")

__all__ = ["RewardSettings", "build_reward"]


def build_reward(
    rewards: Sequence[RewardSettings],
    policy: Policy,
    *,
    task_rewards: Mapping[str, Callable[..., object]] | None = None,
    device: torch.device | str | None = None,
    folder: Path = Path(),
    logs: Path | None = None,
    log: Callable[[str], None] = _LOG.warning,
    medium: Medium = "image",
    rate: float | None = None,
) -> WeightedSum:
    """The weighted sum of the rewards of a config, each under the policy. Nothing is loaded or started yet.

    task_rewards: for kind "task". device: of the models, the samples' own where None. folder: relative paths start
    there, and commands run in it. logs: folder for what commands write to stderr, <name>.log. log: gets a line for
    every failure that does not stop the run. medium: what is scored; of others than pictures functions get a list of
    arrays, and `rate` where they ask for it. Close the result, or use it in a `with`.
    Raises InputError, which says what to download where, and RewardError where a function cannot be loaded.
    """
    parts: dict[str, tuple[Callable[..., object], float]] = {}
    for number, settings in enumerate(rewards):
        name = _unused(_name(settings), parts)
        place = _Place(name, folder, logs, device, policy, task_rewards or {})
        own_code = isinstance(settings, CallableSettings | TaskRewardSettings)
        if medium != "image" and not own_code:
            raise InputError(f"rewards.{number}.kind = {settings.kind!r} takes pictures, the pipeline makes {medium}")
        try:
            reward = place.build(settings)
            reward = reward if medium == "image" else of_media(reward, medium, rate)
        except InputError as error:
            raise InputError(f"rewards.{number}.{error}") from error
        policed = PolicedReward(
            reward, policy, name=name, batch_size=settings.batch_size, check_order=own_code, log=log
        )
        parts[name] = (policed, settings.weight)
    return WeightedSum(parts)


@dataclass(frozen=True)
class _Place:
    """What is around a reward of a config. Its InputErrors begin with the key."""

    name: str
    folder: Path
    logs: Path | None
    device: torch.device | str | None
    limits: Policy
    task_rewards: Mapping[str, Callable[..., object]]

    def build(self, settings: RewardSettings) -> Callable[..., object]:
        match settings:
            case CallableSettings():
                return load_reward(str(self.folder / settings.function))
            case TaskRewardSettings():
                return self._of_task(settings.name)
            case CommandSettings() | HttpSettings():
                return self._elsewhere(settings)
            case JpegSettings():
                return JpegSize(small=settings.kind == "jpeg_compressibility")
            case _:
                return self._model(settings)

    def _model(self, settings: ModelSettings) -> Callable[..., object]:
        options: dict[str, Any] = {"device": self.device, "dtype": DTYPES[settings.dtype]}
        match settings:
            case ClipScoreSettings():
                model = self._weights("model", settings.model, "openai/clip-vit-large-patch14")
                return ClipScore(model, prefix=settings.prefix, **options)
            case PickScoreSettings():
                hub = "yuvalkirstain/PickScore_v1, and the tokenizer of laion/CLIP-ViT-H-14-laion2B-s32B-b79K,"
                return PickScore(self._weights("model", settings.model, hub), **options)
            case AestheticSettings():
                clip = self._weights("clip", settings.clip, "openai/clip-vit-large-patch14")
                layers = self.folder / settings.weights
                if not layers.is_file():
                    raise self._error("weights", settings.weights, "there is no such file", _AESTHETIC)
                return AestheticScore(clip, layers, **options)
            case VqaScoreSettings():
                model = self._weights("model", settings.model, "Salesforce/instructblip-flan-t5-xl")
                return VqaScore(model, question=settings.question, answer=settings.answer, **options)
        raise TypeError(type(settings))

    def _elsewhere(self, settings: CommandSettings | HttpSettings) -> Callable[..., object]:
        seconds = self.limits.timeout_seconds
        if isinstance(settings, HttpSettings):
            url = with_variables(settings.url)
            return HttpReward(url, name=self.name, timeout_seconds=seconds, retries=self.limits.retries)
        log = None if self.logs is None else self.logs / f"{self.name}.log"
        return CommandReward(
            settings.command,
            name=self.name,
            timeout_seconds=seconds,
            start_seconds=settings.start_seconds,
            log=log,
            folder=self.folder,
        )

    def _of_task(self, name: str) -> Callable[..., object]:
        if name in self.task_rewards:
            return self.task_rewards[name]
        known = ", ".join(self.task_rewards) or "none"
        close = difflib.get_close_matches(name, self.task_rewards, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"name = {name!r}: the task's rewards are {known}{hint}")

    def _weights(self, field: str, path: str, hub: str) -> Path:
        folder = self.folder / path
        missing = what_is_missing(folder, tokenizer=field == "model")
        if missing is not None:
            raise self._error(field, path, missing, hub)
        return folder

    def _error(self, field: str, path: str, missing: str, hub: str) -> InputError:
        return InputError(f"{field} = {path!r}: {missing}; download {hub} to {self.folder / path}")


def _name(settings: RewardSettings) -> str:
    match settings:
        case CallableSettings():
            return settings.function.rpartition(":")[2] or "callable"
        case TaskRewardSettings():
            return settings.name
        case _:
            return settings.kind


def _unused(name: str, taken: Mapping[str, object]) -> str:
    """The name, or name_2, name_3, ... where it is taken."""
    numbers = itertools.count(2)
    free = name
    while free in taken:
        free = f"{name}_{next(numbers)}"
    return free
