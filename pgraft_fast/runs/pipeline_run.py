"""A pipeline, prompts and a reward as the subject of a run."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Trainer
from pgraft_fast.finetune.identity import sha256_of
from pgraft_fast.pipelines.adapters.files import AdapterMetadata, save_adapter
from pgraft_fast.pipelines.adapters.fingerprint import base_fingerprint
from pgraft_fast.pipelines.adapters.handover import remove_adapters
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.contents import pipeline_contents
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import Facts, facts_of
from pgraft_fast.pipelines.learners import EMA, TUNED
from pgraft_fast.pipelines.loras import default_targets
from pgraft_fast.pipelines.media import media_of
from pgraft_fast.pipelines.ways import UNGUIDED
from pgraft_fast.ranks.environment import timeout_seconds
from pgraft_fast.ranks.turns import Turns
from pgraft_fast.rewards import WeightedSum
from pgraft_fast.runs.pipeline_settings import PipelineRunSettings as Run
from pgraft_fast.runs.prompts import RunPrompts
from pgraft_fast.runs.shares import holdings, mesh_for
from pgraft_fast.runs.subject import Subject, handover_of, save_weights
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.decoded import Decode, DecodedReward
from pgraft_fast.tasks.pipeline import Finish, Measures, pipeline_task

ADAPTER = "adapter"
_DECODED_AT_ONCE = 8


@dataclass(frozen=True)
class Scored:
    """What scores samples. decode(states, names): what it gets. contents: what it is, as JSON."""

    reward: WeightedSum
    decode: Decode
    contents: Any


@dataclass(frozen=True)
class PipelineParts:
    """A pipeline and what is asked of it.

    call: arguments that are equal for all prompts. scored(finish, rate): of the run, once it is known what the pipeline
    makes; rate: its frames or samples a second. measures(sample): given what it made in the call that was watched.
    at_once: samples that are decoded together, None where that is left open.
    contents(): more of what the result depends on, as JSON. extra: of the adapter's file. settled: arguments whose
    values are the config's own.
    """

    pipe: Any
    prompts: RunPrompts
    scored: Callable[[Finish, float | None], Scored]
    call: Mapping[str, Any] = field(default_factory=dict)
    measures: Callable[[np.ndarray], Measures] = lambda sample: Measures()
    at_once: int | None = None
    contents: Callable[[], Mapping[str, Any]] = dict
    extra: Mapping[str, Any] = field(default_factory=dict)
    settled: frozenset[str] = frozenset()

    def unsettled(self) -> dict[str, Any]:
        """Its arguments but those that are settled."""
        return {name: value for name, value in self.call.items() if name not in self.settled}


def pipeline_subject(parts: PipelineParts, config: Run, log: Callable[[str], None] = print) -> Subject:
    """Watch the pipeline and make ready what a run needs. Raises InputError."""
    pipe, run_prompts, null = parts.pipe, parts.prompts, None
    prompts, columns = run_prompts.prompts, run_prompts.columns
    if config.train.null_prompt:
        null = len(prompts)
        prompts = [*prompts, parts.call.get("negative_prompt") or ""]
        columns = {name: [*values, values[0]] for name, values in columns.items()}
    sample = config.sample
    calls = Calls(pipe, prompts, parts.call, columns, guidance=sample.guidance, steps=sample.steps)
    facts = facts_of(calls)
    config = config.with_solver(facts.parameterization)
    net: Any = getattr(pipe, facts.denoiser)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if config.lora.rank and config.lora.targets is None:
        lora = config.lora.model_copy(update={"targets": default_targets(net)})
        config = config.model_copy(update={"lora": lora})
    recomputes = getattr(net, "is_gradient_checkpointing", False)
    if config.train.checkpointing and not recomputes:
        if not _can_checkpoint(net):
            raise InputError(f"train.checkpointing: {type(net).__name__} has none; leave it out")
        _checkpoint(net, True)
    slow = precision_line(net)
    if slow is not None:
        log(slow)
    fingerprint = base_fingerprint(net)
    held = holdings(config, net)
    mesh = mesh_for(config, net, held, log)
    measures, rate = parts.measures(media_of(facts.media)[0]), _rate(pipe, calls)
    task, finish = pipeline_task(
        facts, run_prompts.train, run_prompts.held_out, config.lora, config.seed, guidance_tuned=sample.guidance_tuned,
        measures=measures, null=null, at_once=parts.at_once or _DECODED_AT_ONCE, rate=rate, mesh=mesh,
    )  # fmt: skip
    driven: Driven = task.model  # type: ignore[assignment]
    _check_driven(driven, config, null, log)
    task = replace(task, identity={"base": fingerprint, "pipeline": task.name})
    scored = parts.scored(finish, rate)
    assert task.learner is not None
    learner = task.learner(config.train)

    def close() -> None:
        driven.close()
        scored.reward.close()
        if config.lora.rank:
            remove_adapters(net)
        if getattr(net, "is_gradient_checkpointing", False) is not recomputes:
            _checkpoint(net, recomputes)
        for parameter in trained:
            parameter.requires_grad_(True)

    return Subject(
        config=config,
        task=task,
        reward=DecodedReward(scored.reward, scored.decode, drops=config.policy.on_failure == "drop"),
        learner=learner,
        save=lambda trainer, run: _save(trainer, run, config, task, net, scored.reward.name, parts.extra),
        identity=lambda: {
            "pipeline": pipeline_contents(pipe),
            "call": sha256_of(_contents({**parts.unsettled(), **({"of prompts": columns} if columns else {})})),
            "rewards": scored.contents,
            **measures.contents,
            **parts.contents(),
        },
        close=close,
        decoder=finish if parts.at_once is None else None,
        checkpoint=partial(_checkpoint, net) if _can_checkpoint(net) else None,
        turns=None if mesh is None else partial(_turns, learner),
        held=held,
    )


def _turns(learner: Any) -> Turns:
    from pgraft_fast.pipelines.sharded import take_turns

    turns = Turns(timeout_seconds())
    take_turns(turns, learner.reference, learner.ema, learner.model)
    return turns


def precision_line(net: Any) -> str | None:
    """What to say of weights that are larger than they need to be; what is trained has float32 masters anyway."""
    weight = next(net.parameters())
    if weight.device.type != "cuda" or weight.dtype is not torch.float32:
        return None
    return (
        f"{type(net).__name__} has float32 weights: bfloat16 takes half the memory and less time, by "
        "pipe.to(torch.bfloat16), in a config by model.dtype = 'bf16'"
    )


def _can_checkpoint(net: Any) -> bool:
    return bool(getattr(net, "_supports_gradient_checkpointing", False))


def _checkpoint(net: Any, on: bool) -> None:
    net.enable_gradient_checkpointing() if on else net.disable_gradient_checkpointing()


def _check_driven(driven: Driven, config: Run, null: int | None, log: Callable[[str], None]) -> None:
    """Raise InputError for settings that this pipeline does not allow."""
    name, why = type(driven.facts.pipe).__name__, driven.why
    reason = next((text for text in why.values() if text is not None), None)
    if config.mode not in ("auto", "eager") and reason is not None:
        raise InputError(f"mode={config.mode!r}: {name} runs in its own loop, as it is: {reason}; set mode='eager'")
    if null is not None and not driven.is_null(null):
        raise InputError(
            f"train.null_prompt={config.train.null_prompt}: the guidance of {name} is not away from its negative or "
            "empty prompt as it encodes it; set 0"
        )
    if why[UNGUIDED] is not None:
        log(f"{name}: rows are trained one after the other, in the pipeline's own loop: {why[UNGUIDED]}")
    _check_trained(driven.facts, config)


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


def _check_trained(facts: Facts, config: Run) -> None:
    """Raise InputError where what is trained is not asked at all noise levels that are trained on."""
    if facts.lowest == 0.0:
        return
    schedule = facts.schedule_of_run
    cut = 0.0 if config.method != "pgraft" or config.train.cut == "auto" else float(config.train.cut)
    if float(schedule.t_of_share(cut)) < facts.lowest:
        share = next(s / 100 for s in range(100) if float(schedule.t_of_share(s / 100)) >= facts.lowest)
        raise InputError(
            f"{type(facts.pipe).__name__}: {facts.denoiser} is not asked below noise level {facts.lowest:.2f}, another "
            f"network is; train above that with method='pgraft' and cut={share:g} or more"
        )


def _save(
    trainer: Trainer, run: Path, config: Run, task: Task, net: Any, reward: str, extra: Mapping[str, Any]
) -> Path:  # fmt: skip
    if config.lora.rank == 0:
        tuned: Any = trainer.tuned
        handover = handover_of(task, trainer.chosen.cut)
        return save_weights(tuned.net, run, {**handover, "reward": reward, **task.identity})
    name = TUNED if config.method == "ddpo" else EMA
    metadata = AdapterMetadata.of(
        net, cut=trainer.chosen.cut, schedule=task.schedule, parameterization=task.parameterization, reward=reward,
        sample_shape=task.shape if len(task.shape) == 3 else None,
        extra={"method": config.method, "seed": config.seed, "pipeline": task.name, **extra}, adapter_name=name,
        fingerprint=str(task.identity["base"]),
    )  # fmt: skip
    return save_adapter(run / ADAPTER, net, metadata, adapter_name=name)


def _contents(value: Any) -> Any:
    """A call's arguments as JSON that tells them apart."""
    if isinstance(value, Mapping):
        return {str(name): _contents(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_contents(item) for item in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Tensor):
        value = value.detach().float().cpu().numpy()
    try:
        array = np.asarray(value)
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    except (TypeError, ValueError):
        return str(type(value))
