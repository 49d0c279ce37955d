"""What a config is about."""

from collections.abc import Callable
from pathlib import Path

from pgraft_fast.commands.config import RunConfig, shown
from pgraft_fast.commands.pipeline_config import PipelineConfig
from pgraft_fast.commands.reward_contents import code_contents
from pgraft_fast.commands.reward_settings import CallableSettings, CommandSettings, HttpSettings
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Trainer
from pgraft_fast.rewards import unasked
from pgraft_fast.runs.subject import Subject, handover_of, save_weights
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.known import load_task

Config = RunConfig | PipelineConfig


def subject_of(config: Config, log: Callable[[str], None], *, scores: bool = True) -> Subject:
    """Load everything. scores: whether rewards will be asked for; without, their code is neither loaded nor run.
    Raises InputError, CheckpointError, RewardError.
    """
    if isinstance(config, PipelineConfig):
        from pgraft_fast.commands.pipeline_source import subject_of_pipeline

        return subject_of_pipeline(config, log, scores=scores)
    task = load_task(config.task)
    return Subject(
        config=config,
        task=task,
        reward=task.reward(config.task.reward) if scores else unasked,
        save=lambda trainer, run: _save_weights(trainer, run, config, task),
        identity=lambda: {**task.identity, **_reward_contents(config.task.reward)},
    )


def check_trusted(config: PipelineConfig, run: Path) -> None:
    """Raise InputError where the config of a run folder names code as a reward, or a place that samples are sent to."""
    for number, reward in enumerate(config.rewards):
        match reward:
            case CallableSettings():
                what = f"is code ({shown(reward.function)})"
            case CommandSettings():
                what = f"is code ({shown(reward.command)})"
            case HttpSettings():
                what = f"sends samples and prompts to {shown(reward.url)}"
            case _:
                continue
        raise InputError(
            f"{run / 'config.json'}: rewards.{number} {what}, and a run folder may be anybody's; give --trust to let it"
        )


def _reward_contents(reward: str) -> dict[str, str | None]:
    contents = code_contents(reward)
    return {"reward": contents["function"], "reward_sha256": contents.get("code")}


def _save_weights(trainer: Trainer, run: Path, config: RunConfig, task: Task) -> Path:
    metadata = {
        **handover_of(task, trainer.chosen.cut),
        "task": {"name": config.task.name, "variant": config.task.variant},
        "reward": Path(config.task.reward).name,
        **task.identity,
    }
    return save_weights(trainer.tuned, run, metadata)
