"""The subject of a config that names a pipeline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgraft_fast.commands.devices import device_of
from pgraft_fast.commands.pipeline_config import PipelineConfig
from pgraft_fast.commands.reward_config import build_reward
from pgraft_fast.commands.reward_contents import reward_contents
from pgraft_fast.diagnostics import inception_features
from pgraft_fast.errors import InputError
from pgraft_fast.finetune.identity import sha256_of_files, sha256_of_texts
from pgraft_fast.pipelines.loading import frozen, load_pipeline
from pgraft_fast.pipelines.standin import parameters_of
from pgraft_fast.rewards import WeightedSum, unasked
from pgraft_fast.rewards.local_models import DTYPES
from pgraft_fast.runs.pipeline_run import PipelineParts, Scored, pipeline_subject
from pgraft_fast.runs.prompts import RunPrompts
from pgraft_fast.runs.subject import Subject
from pgraft_fast.tasks.pictures import UNREADABLE, Pictures, folder_features, is_picture, thumbnail_features
from pgraft_fast.tasks.pipeline import Finish, Measures
from pgraft_fast.tasks.prompt_files import PromptFile, read_prompts, with_held_out


def subject_of_pipeline(config: PipelineConfig, log: Callable[[str], None], *, scores: bool = True) -> Subject:
    """Load pipeline, prompts and, with `scores`, rewards. Raises InputError."""
    device = device_of(config.model.device)
    config = config.model_copy(update={"model": config.model.on(device)})
    source = source_of(config, device, DTYPES[config.model.dtype], log)

    def scored(finish: Finish, rate: float | None) -> Scored:
        if not scores:
            return Scored(WeightedSum({"none": (unasked, 1.0)}), finish.pixels, None)
        rewards = build_reward(
            config.rewards, config.policy, task_rewards=source.rewards, device=device, log=log,
            logs=Path(config.run) / "logs", medium=finish.medium, rate=rate,
        )  # fmt: skip
        return Scored(rewards, finish.pixels, reward_contents(config.rewards))

    call = call_of(config, source.pipe)
    parts = PipelineParts(
        pipe=source.pipe,
        prompts=RunPrompts.of_files(source.train, source.held_out),
        scored=scored,
        call=call,
        measures=partial(_measures, config, source),
        at_once=config.model.vae_slice if "vae_slice" in config.model.model_fields_set else None,
        contents=lambda: {
            "held-out prompts": {
                "text": sha256_of_texts(source.held_out.text, "prompts"),
                "category": sha256_of_texts(source.held_out.category, "categories"),
            },
        },
        extra={"shipped": config.model.shipped},
        settled=frozenset(name for name, value in call.items() if not hasattr(value, "size")),
    )
    return pipeline_subject(parts, config, log)


def call_of(config: PipelineConfig, pipe: Any) -> dict[str, Any]:
    """Arguments of the pipeline's call that the config sets. Raises InputError."""
    model = config.model
    arguments = {name: getattr(model, name) for name in ("height", "width", "negative_prompt", "max_sequence_length")}
    call = {name: value for name, value in arguments.items() if value is not None}
    if model.shipped == "sd3":
        # It has no T5, whose place would be filled with zeros.
        call["max_sequence_length"] = 0
    taken = [name for name in model.call if name in call]
    if taken:
        raise InputError(f"model.call: {', '.join(taken)} is given in [model], too; give it once")
    known = parameters_of(pipe)
    unknown = [name for name in call if name not in known]
    if unknown:
        raise InputError(f"model.{unknown[0]}: {type(pipe).__name__} has no such argument; leave it out")
    return {**call, **{name: _argument(f"model.call.{name}", value) for name, value in model.call.items()}}


def _prompts(path: Path, columns: list[str]) -> PromptFile:
    """With the pictures that its columns name, which lie beside it."""
    file, folder = read_prompts(path, columns), path if path.is_dir() else path.parent

    def argument(name: str, value: Any) -> Any:
        return _argument(f"prompts.columns: {name}", str(folder / value) if is_picture(value) else value)

    values = {name: tuple(argument(name, cell) for cell in column) for name, column in file.columns.items()}
    return replace(file, columns=values)


def _argument(what: str, value: Any) -> Any:
    if not is_picture(value):
        return value
    from PIL import Image

    try:
        with Image.open(value) as image:
            return image.convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"{what}: {value} cannot be read as a picture ({error})") from error


@dataclass(frozen=True)
class Source:
    """What a config names. reference(): features of pictures to compare with."""

    pipe: Any
    train: PromptFile
    held_out: PromptFile
    features: Callable[[torch.Tensor], torch.Tensor]
    reference: Callable[[], torch.Tensor | None]
    rewards: Mapping[str, Callable[..., object]]


def source_of(config: PipelineConfig, device: torch.device, dtype: torch.dtype, log: Callable[[str], None]) -> Source:
    """Load the frozen pipeline and the prompts. Raises InputError."""
    model, prompts = config.model, config.prompts
    features: Callable[[torch.Tensor], torch.Tensor] = thumbnail_features
    rewards: Mapping[str, Callable[..., object]] = {}
    train, held_out = None, None
    reference: Callable[[], torch.Tensor | None] = _no_reference
    if model.shipped is not None:
        from pgraft_fast.tasks.shapes.task import shapes_parts

        own = shapes_parts(model.shipped)
        # diffusers warns of any dtype that is asked for, also of the one that the weights have.
        cast = own.pipe if dtype is torch.float32 else own.pipe.to(dtype)
        pipe, features, rewards = frozen(cast, device), own.features, own.rewards
        train, held_out, reference = own.train, own.held_out, own.reference
    else:
        pipe = load_pipeline(Path(str(model.folder)), dtype, device, model.repository, model.variant, log)
    if prompts.train is not None:
        train, held_out = _prompts(Path(prompts.train), prompts.columns), None
    if prompts.held_out is not None:
        held_out = _prompts(Path(prompts.held_out), prompts.columns)
    assert train is not None
    train, held_out = with_held_out(train, held_out, config.seed)
    if config.evaluate.inception is not None:
        features, _ = inception_features(Path(config.evaluate.inception))
        reference = _no_reference
    return Source(pipe, train, held_out, features, reference, rewards)


def _no_reference() -> None:
    """Nothing to compare with."""


def _measures(config: PipelineConfig, source: Source, sample: np.ndarray) -> Measures:
    """sample: of the pipeline, whose height the pictures of a reference get."""
    inception, folder = config.evaluate.inception, config.evaluate.reference
    features, reference, pictures = source.features, source.reference, "own"
    if folder is not None:
        reference = partial(folder_features, Path(folder), sample.shape[-3], features)
        pictures = str(Pictures.of(Path(folder), sample.shape[-3]).identity()["sha256"])
    contents = {
        "features": "own" if inception is None else sha256_of_files({"inception": Path(inception)}),
        "reference": pictures,
    }
    return Measures(features, reference(), source.held_out.category, {"evaluation": contents})
