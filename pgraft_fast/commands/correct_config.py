"""Configs of inverse noise correction: TOML into a closed schema."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pgraft_fast.commands.config import checked, read_toml
from pgraft_fast.inverse_noise import FitSettings
from pgraft_fast.schema import (
    Batch,
    Count,
    Decay,
    Layers,
    Name,
    Part,
    Positive,
    Rate,
    Settings,
    Size,
    Steps,
    Times,
)  # fmt: skip


class DataSettings(Settings):
    """kind: the digits, or the pictures of a folder. shipped_base: digits are not trained on, their shipped base is
    taken. size, grey: of a picture. noise: standard deviation of what is added to the data, in units of their range
    [-1, 1]; digits have their own.
    """

    kind: Literal["digits", "pictures"] = "digits"
    shipped_base: bool = True
    folder: Name | None = None
    size: Size = 64
    grey: bool = False
    noise: Decay = 1e-3

    @model_validator(mode="after")
    def _has_folder(self) -> Self:
        if self.kind == "pictures" and self.folder is None:
            raise ValueError("data.folder is missing: pictures need one")
        return self


class NetworkSettings(Settings):
    """A vector field. kind: perceptron (width, depth) or unet (channels, attention, layers)."""

    kind: Literal["perceptron", "unet"]
    width: Size | None = None
    depth: Layers | None = None
    channels: list[Size] | None = Field(default=None, min_length=1)
    attention: list[Size] | None = None
    layers: Layers | None = None

    def config(self) -> dict[str, Any]:
        """As `inverse_noise.networks.make_field` takes it."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class TrainingSettings(Settings):
    """See `inverse_noise.FitSettings`."""

    network: NetworkSettings | None = None
    steps: Times = 4000
    batch_size: Batch = 256
    learning_rate: Rate = 1e-3
    weight_decay: Decay = 0.0
    ema: Part = 0.995
    held_out: Part = 0.0
    check_every: Times = 250
    patience: Times = 8
    save_every: Times = 1000
    precision: Literal["fp32", "bf16"] = "fp32"

    def fit(self, seed: int) -> FitSettings:
        """As the training takes them."""
        return FitSettings(**self.model_dump(exclude={"network", "interpolants", "integration_steps"}), seed=seed)


class CorrectorSettings(TrainingSettings):
    """interpolants: one corrector is fitted with each. integration_steps: of their own."""

    interpolants: list[Literal["trigonometric", "linear", "affine"]] = Field(default=["trigonometric"], min_length=1)
    integration_steps: Steps = 5
    learning_rate: Rate = 3e-4
    held_out: Part = 0.1
    steps: Times = 6000


class GeneratorSettings(Settings):
    """The base's steps that are inverted and corrected."""

    steps: Steps = 20
    solver: Literal["euler", "heun", "midpoint"] = "euler"


class InvertSettings(Settings):
    """samples: of the data, in turn, each with its own noise. tolerance, round_trip_limit, max_iterations: see
    `invert`.
    """

    samples: int = Field(default=10_000, ge=20, le=2**31)
    shard: Batch = 1024
    tolerance: Positive = 1e-6
    round_trip_limit: Positive = 1e-5
    max_iterations: Times = 40


class FlowEvaluateSettings(Settings):
    """samples: drawn for each row. base_steps: of the uncorrected base. splits: [base, corrector] steps. inception:
    file of InceptionV3's weights, then FID is the distance; without, the task's own features.
    """

    samples: Count = 10_000
    batch_size: Batch = 1000
    inception: Name | None = None
    base_steps: list[Steps] = Field(default=[5, 10, 20, 50, 100, 200])
    splits: list[list[Steps]] = Field(default=[[20, 2], [20, 5], [20, 10]])

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if any(len(pair) != 2 for pair in self.splits):
            raise ValueError("evaluate.splits: each is [steps of the base, steps of the corrector]")
        return self


class CorrectConfig(Settings):
    """A whole run of the four stages. run: its folder. device: auto is the first GPU, or else the CPU."""

    run: Name
    seed: int = Field(default=0, ge=0, lt=2**31)
    device: str = "auto"
    data: DataSettings = DataSettings()
    base: TrainingSettings = TrainingSettings()
    generator: GeneratorSettings = GeneratorSettings()
    invert: InvertSettings = InvertSettings()
    corrector: CorrectorSettings = CorrectorSettings()
    evaluate: FlowEvaluateSettings = FlowEvaluateSettings()


def read_correct_config(path: Path, overrides: dict[str, Any]) -> CorrectConfig:
    """Read and check a TOML file before any work; relative data.folder and evaluate.inception are found from its
    folder.
    """
    data = read_toml(path, overrides)
    for section, name in (("data", "folder"), ("evaluate", "inception")):
        table = data.get(section)
        if isinstance(table, dict) and isinstance(table.get(name), str):
            table[name] = str(path.parent / table[name])
    return checked(CorrectConfig, data, str(path))
