"""The subject of a text-to-image config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.commands.devices import device_of
from pgraft_fast.commands.reward_config import build_reward
from pgraft_fast.commands.reward_contents import reward_contents
from pgraft_fast.commands.text_config import TextConfig
from pgraft_fast.diagnostics import inception_features
from pgraft_fast.finetune import Trainer
from pgraft_fast.finetune.identity import sha256_of_files, sha256_of_texts
from pgraft_fast.integrations.adapter_files import AdapterMetadata, save_adapter
from pgraft_fast.integrations.fingerprint import base_fingerprint
from pgraft_fast.rewards.local_models import DTYPES
from pgraft_fast.runs.subject import Subject, handover_of, save_weights
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.decoded import DecodedReward
from pgraft_fast.tasks.pictures import Pictures, thumbnail_features
from pgraft_fast.tasks.text_to_image import Parts, folder_features, text_task, with_held_out
from pgraft_fast.text_to_image import Decoder, PromptFile, kind_of, load_pipeline, read_prompts
from pgraft_fast.text_to_image.agreement import Asked, check_agreement
from pgraft_fast.text_to_image.contents import pipeline_contents
from pgraft_fast.text_to_image.learners import EMA, TUNED
from pgraft_fast.text_to_image.loading import frozen

ADAPTER = "adapter"


def text_subject(config: TextConfig, log: Callable[[str], None]) -> Subject:
    """Load pipeline, prompts and rewards. Raises InputError."""
    device, dtype = device_of(config.model.device), DTYPES[config.model.dtype]
    parts = _parts(config, device, dtype, log)
    pipe = parts.pipe
    task, decoder = text_task(parts)
    _check_agreement(parts, task, decoder)
    rewards = build_reward(
        config.rewards, config.policy, task_rewards=parts.rewards, device=device, log=log,
        logs=Path(config.run) / "logs",
    )  # fmt: skip
    solver = config.sample.solver
    if solver == "auto":
        # Stochastic, so that a decision at the cut says something of the state there.
        solver = "euler_sde" if task.parameterization == "velocity" else "ddpm"
    resolved = config.model_copy(update={"sample": config.sample.model_copy(update={"solver": solver})})
    fingerprint = base_fingerprint(kind_of(pipe).net(pipe))
    task = replace(task, identity={"base": fingerprint, "pipeline": type(pipe).__name__})
    assert task.learner is not None
    return Subject(
        config=resolved,
        task=task,
        reward=DecodedReward(rewards, lambda latents, prompts: (decoder(latents), prompts)),
        learner=task.learner(config.train),
        save=lambda trainer, run: _save(trainer, run, resolved, task, pipe, fingerprint, rewards.name),
        identity=lambda: {
            "pipeline": pipeline_contents(pipe),
            "rewards": reward_contents(config.rewards),
            "held-out prompts": {
                "text": sha256_of_texts(parts.held_out.text, "prompts"),
                "category": sha256_of_texts(parts.held_out.category, "categories"),
            },
            "evaluation": _evaluation_contents(config, parts),
        },
        close=rewards.close,
    )


def _evaluation_contents(config: TextConfig, parts: Parts) -> dict[str, str]:
    """Of the features of pictures, and of the pictures that are compared with."""
    inception, reference = config.evaluate.inception, config.evaluate.reference
    return {
        "features": "own" if inception is None else sha256_of_files({"inception": Path(inception)}),
        "reference": "own"
        if reference is None
        else str(Pictures.of(Path(reference), parts.height).identity()["sha256"]),
    }


def _check_agreement(parts: Parts, task: Task, decoder: Decoder) -> None:
    asked = Asked(
        parts.train.text[0], 0, parts.negative_prompt, parts.height, parts.width, parts.max_sequence_length
    )  # fmt: skip
    denoiser: Any = task.model
    check_agreement(parts.pipe, denoiser, decoder, task.schedule, task.parameterization, asked)


def pipeline_of(
    config: TextConfig, device: torch.device, dtype: torch.dtype, log: Callable[[str], None]
) -> tuple[Any, PromptFile]:
    """The frozen pipeline of a config, and its held-out prompts. Raises InputError."""
    found = _found(config, device, dtype, log)
    return found.pipe, found.held_out


@dataclass(frozen=True)
class _Found:
    """What a config names. reference(): features of pictures to compare with."""

    pipe: Any
    train: PromptFile
    held_out: PromptFile
    features: Callable[[torch.Tensor], torch.Tensor]
    reference: Callable[[], torch.Tensor | None]
    rewards: Mapping[str, Callable[..., object]]


def _found(config: TextConfig, device: torch.device, dtype: torch.dtype, log: Callable[[str], None]) -> _Found:
    model, given = config.model, config.prompts
    features: Callable[[torch.Tensor], torch.Tensor] = thumbnail_features
    rewards: Mapping[str, Callable[..., object]] = {}
    train, held_out = None, None
    reference: Callable[[], torch.Tensor | None] = _no_reference
    if model.shipped is not None:
        from pgraft_fast.tasks.shapes.task import shapes_parts

        own = shapes_parts(model.shipped)
        pipe, features, rewards = frozen(own.pipe.to(dtype), device), own.features, own.rewards
        train, held_out, reference = own.train, own.held_out, own.reference
    else:
        pipe = load_pipeline(Path(str(model.folder)), dtype, device, model.repository, model.variant, log)
    if given.train is not None:
        train, held_out = read_prompts(Path(given.train)), None
    if given.held_out is not None:
        held_out = read_prompts(Path(given.held_out))
    assert train is not None
    train, held_out = with_held_out(train, held_out, config.seed)
    if config.evaluate.inception is not None:
        features, _ = inception_features(Path(config.evaluate.inception))
        reference = _no_reference
    if config.evaluate.reference is not None:
        folder = Path(config.evaluate.reference)
        reference = partial(folder_features, folder, _size(pipe, model.height, 0), features)
    return _Found(pipe, train, held_out, features, reference, rewards)


def _no_reference() -> None:
    """Nothing to compare with."""


def _parts(config: TextConfig, device: torch.device, dtype: torch.dtype, log: Callable[[str], None]) -> Parts:
    found, model = _found(config, device, dtype, log), config.model
    return Parts(
        pipe=found.pipe, train=found.train, held_out=found.held_out, height=_size(found.pipe, model.height, 0),
        width=_size(found.pipe, model.width, 1), guidance=config.sample.guidance,
        guidance_tuned=config.sample.guidance_tuned, dtype=dtype,
        negative_prompt=model.negative_prompt, max_sequence_length=text_length(config),
        vae_slice=model.vae_slice, features=found.features, reference=found.reference(), rewards=found.rewards,
        lora=config.lora, seed=config.seed, checkpointing=config.train.checkpointing,
    )  # fmt: skip


def text_length(config: TextConfig) -> int:
    """Tokens of T5, which the shipped flow has not: its place would be filled with zeros."""
    return 0 if config.model.shipped == "sd3" else config.model.max_sequence_length


def _size(pipe: Any, asked: int | None, axis: int) -> int:
    """In pixels; the model's own by default. axis: 0 of the height, 1 of the width."""
    if asked is not None:
        return asked
    own = kind_of(pipe).net(pipe).config.get("sample_size") or getattr(pipe, "default_sample_size", 64)
    return int(own if isinstance(own, int) else own[axis]) * int(pipe.vae_scale_factor)


def _save(
    trainer: Trainer, run: Path, config: TextConfig, task: Task, pipe: Any, fingerprint: str, reward: str
) -> Path:
    net = kind_of(pipe).net(pipe)
    if config.lora.rank == 0:
        tuned: Any = trainer.tuned
        metadata = {**handover_of(task, trainer.chosen.cut), "reward": reward, "base": fingerprint}
        return save_weights(tuned.net, run, metadata)
    name = TUNED if config.method == "ddpo" else EMA
    told = AdapterMetadata.of(
        net, cut=trainer.chosen.cut, schedule=task.schedule, parameterization=task.parameterization, reward=reward,
        sample_shape=task.shape,
        extra={"method": config.method, "seed": config.seed, "shipped": config.model.shipped}, adapter_name=name,
    )  # fmt: skip
    return save_adapter(run / ADAPTER, net, told, adapter_name=name)
