"""Text to image as a task: a pipeline, prompts to train and to evaluate on, features of pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.diffusion import Stream, uniform
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Learner, Prompts, TrainSettings
from pgraft_fast.tasks.base import Task
from pgraft_fast.tasks.pictures import Pictures, thumbnail_features, to_pictures
from pgraft_fast.text_to_image import (
    Decoder,
    Denoiser,
    FullLearner,
    LoraLearner,
    LoraSettings,
    PromptFile,
    PromptTable,
    kind_of,
)
from pgraft_fast.text_to_image.agreement import check_settings
from pgraft_fast.text_to_image.kinds import latent_shape

_HELD_OUT_SHARE = 0.1
_REFERENCE = 10_000


@dataclass(frozen=True)
class Parts:
    """What a text-to-image task is made of.

    pipe: frozen, on its device. train, held_out: prompts. height, width: of pictures. guidance_tuned: of the tuned
    model, default guidance. features(pictures) -> (n, d). reference: features of pictures to compare with, or None.
    rewards: of the task's own, by name.
    """

    pipe: Any
    train: PromptFile
    held_out: PromptFile
    height: int
    width: int
    guidance: float
    guidance_tuned: float | None = None
    negative_prompt: str | None = None
    max_sequence_length: int = 256
    vae_slice: int = 8
    dtype: torch.dtype = torch.float32
    features: Callable[[Tensor], Tensor] = thumbnail_features
    reference: Tensor | None = None
    rewards: Mapping[str, Callable[..., object]] | None = None
    lora: LoraSettings = LoraSettings()
    seed: int = 0
    checkpointing: bool = False
    identity: Mapping[str, object] | None = None


def text_task(parts: Parts) -> tuple[Task, Decoder]:
    """The task, whose samples are latents, and what makes pictures of them. Raises InputError."""
    pipe, kind = parts.pipe, kind_of(parts.pipe)
    check_settings(pipe, kind)
    net = kind.net(pipe)
    device = next(net.parameters()).device
    shape = latent_shape(pipe, parts.height, parts.width)
    texts = [*parts.train.text, *parts.held_out.text]
    table = PromptTable(
        lambda wanted: kind.encode(pipe, wanted, parts.max_sequence_length), texts, parts.negative_prompt, device,
        parts.dtype,
    )  # fmt: skip
    constants = kind.constants(pipe, parts.height, parts.width)
    denoiser = Denoiser(net, kind, table, constants, guidance=parts.guidance)
    decoder = Decoder(pipe.vae, parts.vae_slice, kind.unscale(pipe.vae.config))
    if parts.checkpointing:
        net.enable_gradient_checkpointing()
    schedule, parameterization = kind.schedule(pipe, parts.height, parts.width)
    count = len(parts.train.text)
    task = Task(
        name=type(pipe).__name__,
        model=denoiser,
        schedule=schedule,
        parameterization=parameterization,
        shape=shape,
        prompts=_prompts(parts.train.text, 0, table),
        held_out=_prompts(parts.held_out.text, count, table),
        categories=parts.held_out.category,
        rewards=parts.rewards or {},
        features=lambda latents: _in_batches(parts.features, decoder, latents),
        data=parts.reference,
        pictures=lambda latents: to_pictures(decoder(latents.to(device))),
        identity=dict(parts.identity or {}),
        learner=lambda settings: _learner(denoiser, settings, parts),
    )
    return task, decoder


def with_held_out(train: PromptFile, held_out: PromptFile | None, seed: int) -> tuple[PromptFile, PromptFile]:
    """Prompts to train and to evaluate on, without overlap: a drawn tenth of `train` where none are given."""
    if held_out is not None:
        taken = set(held_out.text)
        rows = [row for row, text in enumerate(train.text) if text not in taken]
        if not rows:
            raise InputError("prompts: all of train are held out, too; give others")
        return _rows(train, rows), held_out
    n = len(train.text)
    if n < 2:
        raise InputError(f"prompts: {n} to train on; at least 2 are needed, or give held_out")
    order = torch.argsort(uniform(seed, torch.arange(n), 1 << 20, Stream.PROMPTS), stable=True).tolist()
    out = max(1, round(_HELD_OUT_SHARE * n))
    return _rows(train, sorted(order[out:])), _rows(train, sorted(order[:out]))


def folder_features(folder: Path, size: int, features: Callable[[Tensor], Tensor]) -> Tensor:
    """Features (n, d) of the pictures of a folder, at most 10,000. Raises InputError."""
    pictures = Pictures.of(folder, size)
    numbers = torch.arange(min(len(pictures), _REFERENCE))
    with torch.no_grad():
        return torch.cat([features(pictures.at(part)).flatten(1).cpu() for part in numbers.split(100)])


def _prompts(text: Sequence[str], first: int, table: PromptTable) -> Prompts:
    numbers = torch.arange(first, first + len(text))
    return Prompts(text, numbers, table.null, lambda chosen: table.prepare(chosen.cpu() + first))


def _learner(denoiser: Denoiser, settings: TrainSettings, parts: Parts) -> Learner:
    if parts.lora.rank == 0:
        return FullLearner(denoiser, settings, parts.guidance_tuned)
    return LoraLearner(denoiser, settings, parts.lora, parts.seed, parts.guidance_tuned)


def _in_batches(features: Callable[[Tensor], Tensor], decoder: Decoder, latents: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([features(decoder(part)).flatten(1).cpu() for part in latents.split(100)])


def _rows(file: PromptFile, rows: Sequence[int]) -> PromptFile:
    return PromptFile(tuple(file.text[row] for row in rows), tuple(file.category[row] for row in rows))
