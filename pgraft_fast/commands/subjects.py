"""What a config is about: its task, its reward, what is trained, and how the result is saved."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgraft_fast.commands.config import RunConfig, load_task
from pgraft_fast.commands.reward_contents import code_contents
from pgraft_fast.commands.text_config import TextConfig
from pgraft_fast.files import write_file
from pgraft_fast.finetune import Learner, Trainer
from pgraft_fast.finetune.checkpoint import tensor_bytes
from pgraft_fast.tasks import Task

Config = RunConfig | TextConfig
MODEL = "model.safetensors"


@dataclass(frozen=True)
class Subject:
    """config: with nothing left open. learner: None for all weights of a copy. save(trainer, run): the result, its
    path. identity(): what the task and the reward are, by content; a moment's work for a large model. close(): of the
    reward.
    """

    config: Config
    task: Task
    reward: Callable[..., object]
    save: Callable[[Trainer, Path], Path]
    learner: Learner | None = None
    identity: Callable[[], dict[str, Any]] = dict
    close: Callable[[], None] = lambda: None


def subject_of(config: Config, log: Callable[[str], None]) -> Subject:
    """Load everything. Raises InputError, CheckpointError, RewardError."""
    if isinstance(config, TextConfig):
        from pgraft_fast.commands.text_subject import text_subject

        return text_subject(config, log)
    task = load_task(config.task)
    return Subject(
        config=config,
        task=task,
        reward=task.reward(config.task.reward),
        save=lambda trainer, run: _save_weights(trainer, run, config, task),
        identity=lambda: {**task.identity, **_reward_contents(config.task.reward)},
    )


def _reward_contents(reward: str) -> dict[str, str | None]:
    told = code_contents(reward)
    return {"reward": told["function"], "reward_sha256": told.get("code")}


def handover_of(task: Task, cut: float) -> dict[str, Any]:
    """What must be known to hand over at the cut again."""
    cut_logsnr = task.schedule.cut_logsnr(cut)
    return {
        "cut": cut,
        "cut_logsnr": cut_logsnr if math.isfinite(cut_logsnr) else None,
        "schedule": task.schedule.to_dict(),
        "parameterization": task.parameterization,
    }


def _save_weights(trainer: Trainer, run: Path, config: RunConfig, task: Task) -> Path:
    metadata = {
        **handover_of(task, trainer.chosen.cut),
        "task": {"name": config.task.name, "variant": config.task.variant},
        "reward": Path(config.task.reward).name,
        **task.identity,
    }
    write_file(run / MODEL, tensor_bytes(trainer.tuned.state_dict(), json.dumps(metadata)))
    return run / MODEL
