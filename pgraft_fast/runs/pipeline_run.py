"""A pipeline, prompts and a reward as the subject of a run."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Trainer
from pgraft_fast.finetune.identity import sha256_of
from pgraft_fast.integrations.adapter_files import AdapterMetadata, save_adapter
from pgraft_fast.integrations.fingerprint import base_fingerprint
from pgraft_fast.integrations.handover import remove_adapters
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import Facts, facts_of
from pgraft_fast.runs.asked import Asked
from pgraft_fast.runs.pipeline_settings import PipelineRunSettings
from pgraft_fast.runs.rewards import Rewards, reward_codes, weighted
from pgraft_fast.runs.subject import Subject, handover_of, save_weights
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.decoded import DecodedReward
from pgraft_fast.tasks.pipeline import of_media, pipeline_task
from pgraft_fast.text_to_image.contents import pipeline_contents
from pgraft_fast.text_to_image.learners import EMA, TUNED, default_targets

ADAPTER = "adapter"


def pipeline_subject(
    pipe: Any,
    reward: Rewards,
    prompts: Sequence[Any],
    config: PipelineRunSettings,
    *,
    held_out: Sequence[Any] | None = None,
    call: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
) -> Subject:
    """Watch the pipeline and make ready what a run needs. Raises InputError."""
    asked = Asked.of(prompts, held_out, config.seed)
    calls = Calls(
        pipe, asked.prompts, dict(call or {}), asked.columns, guidance=config.sample.guidance,
        steps=config.sample.steps,
    )  # fmt: skip
    facts = facts_of(calls)
    solver = config.sample.solver
    if solver == "auto":
        # Stochastic, so that a decision at the cut says something of the state there.
        solver = "euler_sde" if facts.parameterization == "velocity" else "ddpm"
        config = config.model_copy(update={"sample": config.sample.model_copy(update={"solver": solver})})
    net: Any = getattr(pipe, facts.denoiser)
    trained = [one for one in net.parameters() if one.requires_grad]
    if config.lora.rank and config.lora.targets is None:
        lora = config.lora.model_copy(update={"targets": default_targets(net)})
        config = config.model_copy(update={"lora": lora})
    if config.checkpointing:
        net.enable_gradient_checkpointing()
    fingerprint = base_fingerprint(net)
    task, finish = pipeline_task(facts, asked.train, asked.held_out, config.lora.settings(), config.seed)
    driven: Driven = task.model  # type: ignore[assignment]
    if driven.why[False] is not None:
        log(f"{task.name}: rows are trained one after the other, in the pipeline's own loop: {driven.why[False]}")
    task = replace(task, identity={"base": fingerprint, "pipeline": task.name})
    medium, rate = finish.medium, _rate(pipe, calls)
    rewards = weighted(reward, config.policy, log, lambda one: of_media(one, medium, rate))
    _check_trained(task, facts, config)
    assert task.learner is not None
    model: Any = task.model

    def close() -> None:
        model.close()
        rewards.close()
        if config.lora.rank:
            remove_adapters(net)
        for one in trained:
            one.requires_grad_(True)

    return Subject(
        config=config,
        task=task,
        reward=DecodedReward(rewards, finish.decoded),
        learner=task.learner(config.train),
        save=lambda trainer, run: _save(trainer, run, config, task, net, rewards.name),
        identity=lambda: {
            "pipeline": pipeline_contents(pipe),
            "call": sha256_of(_contents({**(call or {}), **({"of prompts": asked.columns} if asked.columns else {})})),
            "rewards": reward_codes(reward),
        },
        close=close,
    )


def _rate(pipe: Any, calls: Calls) -> float | None:
    """Frames or samples a second, where the call or the pipeline tells."""
    for name in ("frame_rate", "fps"):
        if name in calls.call:
            return float(calls.call[name])
    for part in ("vocoder", "vae"):
        config = getattr(getattr(pipe, part, None), "config", None)
        rate = getattr(config, "sampling_rate", None)
        if rate is not None:
            return float(rate)
    return None


def _check_trained(task: Task, facts: Facts, config: PipelineRunSettings) -> None:
    """Raise InputError where what is trained is not asked at all noise levels that are trained on."""
    model: Any = task.model
    if facts.lowest == 0.0:
        return
    driven: Driven = model
    cut = 0.0 if config.method != "pgraft" or config.train.cut == "auto" else float(config.train.cut)
    at = float(task.schedule.t_of_share(cut))
    if at < facts.lowest:
        driven.close()
        share = next(s / 100 for s in range(100) if float(task.schedule.t_of_share(s / 100)) >= facts.lowest)
        raise InputError(
            f"{task.name}: {facts.denoiser} is not asked below noise level {facts.lowest:.2f}, another network is; "
            f"train above that with method='pgraft' and cut={share:g} or more"
        )


def _save(trainer: Trainer, run: Path, config: PipelineRunSettings, task: Task, net: Any, reward: str) -> Path:
    if config.lora.rank == 0:
        tuned: Any = trainer.tuned
        handover = handover_of(task, trainer.chosen.cut)
        return save_weights(tuned.net, run, {**handover, "reward": reward, **task.identity})
    name = TUNED if config.method == "ddpo" else EMA
    told = AdapterMetadata.of(
        net, cut=trainer.chosen.cut, schedule=task.schedule, parameterization=task.parameterization, reward=reward,
        sample_shape=task.shape if len(task.shape) == 3 else None,
        extra={"method": config.method, "seed": config.seed, "pipeline": task.name}, adapter_name=name,
    )  # fmt: skip
    return save_adapter(run / ADAPTER, net, told, adapter_name=name)


def _contents(value: Any) -> Any:
    """A call's arguments as JSON that tells them apart."""
    if isinstance(value, Mapping):
        return {str(name): _contents(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_contents(one) for one in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Tensor):
        value = value.detach().float().cpu().numpy()
    try:
        array = np.asarray(value)
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    except (TypeError, ValueError):
        return str(type(value))
