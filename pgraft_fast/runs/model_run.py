"""A model of one's own, prompts and a reward as the subject of a run."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Prompts
from pgraft_fast.finetune.identity import sha256_of_module
from pgraft_fast.runs.pipeline_settings import PGraftConfig, PipelineRunSettings
from pgraft_fast.runs.rewards import Rewards, reward_codes, weighted
from pgraft_fast.runs.subject import Subject, handover_of, save_weights
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.pictures import to_pictures

T = TypeVar("T")
Features = Callable[[Tensor], Tensor]
# Sides in pixels that a sample is shown in, at least.
_SIDE = 32


def model_settings(config: PGraftConfig) -> PipelineRunSettings:
    """In the engine's words. Raises InputError for what belongs to pipelines."""
    if "lora" in config.model_fields_set and config.lora.rank:
        raise InputError("lora: of a model of one's own all weights are trained; leave it out")
    if config.guidance is not None:
        raise InputError("guidance: a model of one's own is guided by itself; wrap it with pgraft_fast.guided")
    if config.shard != "never":
        raise InputError(f"shard={config.shard!r}: a model of one's own is whole on each rank; leave it out")
    if config.checkpointing:
        raise InputError("checkpointing: a model of one's own does this itself; leave it out")
    settings = config.model_copy(update={"objective": config.objective or "state"}).settings()
    return settings.model_copy(update={"lora": settings.lora.model_copy(update={"rank": 0})})


def model_subject(
    model: nn.Module,
    schedule: Schedule,
    reward: Rewards,
    prompts: Prompts | Sequence[str] | None,
    config: PipelineRunSettings,
    *,
    shape: Sequence[int],
    parameterization: str,
    held_out: Prompts | None = None,
    features: Features | None = None,
    pictures: Callable[[Tensor], np.ndarray] | None = None,
    log: Callable[[str], None] = print,
) -> Subject:
    """Raises InputError."""
    if not isinstance(model, nn.Module) or next(model.parameters(), None) is None:
        raise InputError(f"model: {type(model).__name__} is no torch.nn.Module with weights")
    config = config.with_solver(parameterization)
    task = Task(
        name=type(model).__name__,
        model=model,
        schedule=schedule,
        parameterization=parameterization,
        shape=tuple(shape),
        prompts=_prompts(prompts),
        held_out=held_out,
        rewards={},
        features=_of_samples(_flat if features is None else features),
        data=None,
        pictures=_of_samples(_pictures if pictures is None else pictures),
        identity={"model": sha256_of_module(model)},
    )
    rewards = weighted(reward, config.policy, log)
    return Subject(
        config=config,
        task=task,
        reward=rewards,
        save=lambda trainer, run: save_weights(
            trainer.tuned, run, {**handover_of(task, trainer.chosen.cut), "reward": rewards.name, **task.identity}
        ),
        identity=lambda: {**task.identity, "rewards": reward_codes(reward)},
        close=rewards.close,
    )


def _prompts(prompts: Prompts | Sequence[str] | None) -> Prompts:
    if prompts is None:
        return Prompts([""])
    if isinstance(prompts, Prompts):
        rows = len(prompts.text) if prompts.condition is None else len(prompts.condition)
        if rows != len(prompts.text) or not rows:
            raise InputError(f"prompts: {len(prompts.text)} texts with {rows} conditions; give one for each")
        return prompts
    if isinstance(prompts, str) or not all(isinstance(text, str) for text in prompts) or not len(prompts):
        raise InputError("prompts: give a list of texts, or Prompts with a condition for each")
    return Prompts(list(prompts))


def _of_samples(function: Callable[[Tensor], T]) -> Callable[[Tensor, Tensor | None], T]:
    """What does not ask for the prompts."""
    return lambda samples, condition: function(samples)


def _flat(samples: Tensor) -> Tensor:
    return samples.flatten(1)


def _pictures(samples: Tensor) -> np.ndarray:
    """Samples of one or three channels as pictures in [-1, 1]; of any other shape their values as areas of grey, from
    the least to the most of all.
    """
    if samples.ndim == 4 and samples.shape[1] in (1, 3):
        return to_pictures(samples)
    values = samples.flatten(1).float().cpu()
    across = math.ceil(math.sqrt(values.shape[1]))
    down = math.ceil(values.shape[1] / across)
    low, high = float(values.min()), float(values.max())
    grey = torch.full((len(values), down * across), 255.0)
    grey[:, : values.shape[1]] = 255.0 * (values - low) / max(high - low, 1e-12)
    shown = grey.round().to(torch.uint8).view(-1, down, across).numpy()
    each = max(1, -(-_SIDE // max(down, across)))
    return shown.repeat(each, axis=1).repeat(each, axis=2)
