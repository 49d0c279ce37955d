"""Configs of runs on a pipeline: TOML into a closed schema, memory presets, paths from the config's folder."""

from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from pgraft_fast.commands.config import RunConfig, checked, override, read_config, read_toml
from pgraft_fast.commands.reward_settings import RewardSettings
from pgraft_fast.errors import InputError
from pgraft_fast.runs.pipeline_settings import PipelineRunSettings
from pgraft_fast.runs.settings import EvaluateSettings
from pgraft_fast.schema import Batch, Count, Name, Settings, Size
from pgraft_fast.tasks.pictures import is_picture

# What a preset sets where the config says nothing, for a model of Stable Diffusion 1 or 2's size in 8 GB; larger models
# halve the numbers by themselves when memory is full.
PRESETS: dict[str, dict[str, Any]] = {
    "8gb": {"model.dtype": "bf16", "model.vae_slice": 1, "sample.batch_size": 4, "train.micro_batch": 1,
            "train.checkpointing": True},
    "16gb": {"model.dtype": "bf16", "model.vae_slice": 2, "sample.batch_size": 8, "train.micro_batch": 2,
             "train.checkpointing": True},
    "24gb": {"model.dtype": "bf16", "model.vae_slice": 4, "sample.batch_size": 16, "train.micro_batch": 4,
             "train.checkpointing": True},
    "80gb": {"model.dtype": "bf16", "model.vae_slice": 16, "sample.batch_size": 64, "train.micro_batch": 16,
             "train.checkpointing": False},
}  # fmt: skip


class PipelineSettings(Settings):
    """The model. folder: of diffusers; repository: where to download it. shipped: shapes instead, "sd" or "sd3".

    dtype: of the weights, default bf16 for a folder's on a GPU that has it, else fp32; what is trained has float32
    masters.
    variant: of the weight files, such as "fp16"; default the plain ones, or the only one there is. height, width: in
    pixels, default the model's own. vae_slice: samples decoded at once. negative_prompt: the other side of guidance;
    default what the pipeline takes where none is given. max_sequence_length: tokens of a text, where the pipeline has
    this argument; default its own. call: other arguments of its call; a file name that ends as one of a picture is that
    picture.
    """

    folder: Name | None = None
    repository: str | None = None
    variant: str | None = None
    shipped: Literal["sd", "sd3"] | None = None
    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    height: Size | None = None
    width: Size | None = None
    vae_slice: Batch = 8
    negative_prompt: str | None = None
    max_sequence_length: int | None = Field(default=None, ge=0, le=2**16)
    call: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.folder is None) == (self.shipped is None):
            raise ValueError("model: give folder, or shipped, one of the two")
        if self.variant is not None and self.shipped is not None:
            raise ValueError("model.variant belongs to a folder; the shipped models have none")
        return self

    def on(self, device: torch.device) -> Self:
        """With a dtype that is chosen."""
        if self.dtype != "auto":
            return self
        half = (
            self.shipped is None and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        return self.model_copy(update={"dtype": "bf16" if half else "fp32"})


class PromptSettings(Settings):
    """train, held_out: files or folders of prompts, see `read_prompts`; default those of shapes. held_out: default a
    drawn tenth of train, which is not trained on then. columns: other fields of both, which are arguments of the
    pipeline's call for each prompt; a file name that ends as one of a picture is that picture.
    """

    train: Name | None = None
    held_out: Name | None = None
    columns: list[Name] = Field(default_factory=list)


class PipelineEvaluateSettings(EvaluateSettings):
    """samples: of held-out prompts, before and after, rounded up to whole groups of candidates. reference: folder of
    pictures for the Frechet distance. inception: file of InceptionV3's weights for its features.
    """

    samples: Count = 256
    reference: Name | None = None
    inception: Name | None = None


class PipelineConfig(PipelineRunSettings):
    """A whole run. memory: as of any run, or a preset, see `PRESETS`; None, in files of earlier runs, is "fixed"."""

    memory: Literal["auto", "fixed", "8gb", "16gb", "24gb", "80gb"] | None = "auto"  # type: ignore[assignment]
    model: PipelineSettings
    prompts: PromptSettings = PromptSettings()
    rewards: list[RewardSettings] = Field(min_length=1)
    evaluate: PipelineEvaluateSettings = PipelineEvaluateSettings()

    @model_validator(mode="after")
    def _has_prompts(self) -> Self:
        if self.model.shipped is None and self.prompts.train is None:
            raise ValueError("prompts.train is missing: a file of prompts")
        return self


def read_pipeline_config(path: Path, overrides: dict[str, Any]) -> PipelineConfig:
    """Read and check a TOML file before any work; relative paths in it start at its folder. Raises InputError."""
    data = read_toml(path, {})
    for table, keys in (("model", ("folder",)), ("prompts", ("train", "held_out")),
                        ("evaluate", ("reference", "inception"))):  # fmt: skip
        part = data.get(table)
        for key in keys:
            if isinstance(part, dict) and isinstance(part.get(key), str):
                part[key] = str(path.parent / part[key])
    _place_rewards(data.get("rewards"), path.parent)
    _place_pictures(data.get("model"), path.parent)
    override(data, overrides)
    apply_preset(data)
    return checked(PipelineConfig, data, str(path))


def read_run_config(path: Path, run: str | None, reward: str | None) -> RunConfig | PipelineConfig:
    """The config of a fine-tuning run, of whichever kind the file is. run, reward: in place of the file's."""
    if "model" not in read_toml(path, {}):
        return read_config(path, {"run": run, "task.reward": reward})
    if reward is not None:
        raise InputError(f"--reward {reward}: the config of a pipeline has a list of rewards; change it in {path}")
    return read_pipeline_config(path, {"run": run})


def apply_preset(data: dict[str, Any]) -> None:
    """Fill in what the preset of `memory` sets and the config does not."""
    for key, value in PRESETS.get(str(data.get("memory")), {}).items():
        table, name = key.split(".")
        part = data.setdefault(table, {})
        if isinstance(part, dict):
            part.setdefault(name, value)


def _place_rewards(rewards: Any, folder: Path) -> None:
    for reward in rewards if isinstance(rewards, list) else ():
        for key in ("model", "clip", "weights", "function"):
            if isinstance(reward, dict) and isinstance(reward.get(key), str):
                reward[key] = str(folder / reward[key])


def _place_pictures(model: Any, folder: Path) -> None:
    call = model.get("call") if isinstance(model, dict) else None
    if isinstance(call, dict):
        call.update({name: str(folder / value) for name, value in call.items() if is_picture(value)})
