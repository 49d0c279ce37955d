"""Ways of tuning the shapes model that are compared with each other, and what each is without its reward."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.commands.pipeline_config import PipelineConfig, read_pipeline_config
from pgraft_fast.diffusion import Stream, uniform
from pgraft_fast.errors import InputError

CONFIG = Path(__file__).parent.parent / "configs" / "shapes.toml"
# Share of the budget that P-GRAFT and GRAFT sample with; the rest trains.
_SAMPLING_SHARE = 0.77
# Share of the base's samples that the threshold of configs/shapes.toml accepts.
_ACCEPTED_SHARE = 0.25
_LOWEST = -1e30


@dataclass(frozen=True)
class Recipe:
    """label: for people. settings: what differs from configs/shapes.toml, by dotted name. rounds: as many as the budget
    has room for, or else one round that fills it.
    """

    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    rounds: bool = False


RECIPES = {
    "pgraft": Recipe("P-GRAFT"),
    "graft": Recipe("GRAFT", {"method": "graft"}),
    "pgraft-state": Recipe("P-GRAFT, state", {"train.objective": "state"}),
    "graft-clean": Recipe("GRAFT, clean", {"method": "graft", "train.objective": "clean"}),
    # Of fifteen tries each on seed 0, as many as contrast had.
    "ddpo": Recipe(
        "DDPO", {"method": "ddpo", "sample.prompts": 16, "sample.candidates": 8, "ddpo.clip_range": 1e-2}, rounds=True,
    ),
    "nft": Recipe(
        "DiffusionNFT",
        {"method": "nft", "sample.prompts": 16, "sample.candidates": 8, "sample.guidance": 1.0,
         "train.learning_rate": 1e-3, "nft.batch_size": 32, "nft.timestep_fraction": 0.3, "nft.kl": 0.0},
        rounds=True,
    ),
}  # fmt: skip
# What stands in the place of the reward.
CONTROLS = {"all": "all kept", "random": "random reward"}


def label_of(method: str) -> str:
    """ "pgraft:random" for people."""
    name, _, control = method.partition(":")
    if name not in RECIPES or control not in ("", *CONTROLS):
        known = f"{', '.join(RECIPES)}, each with :{' or :'.join(CONTROLS)} for a control"
        raise InputError(f"method {method!r} is unknown; known: {known}")
    return f"{RECIPES[name].label}, {CONTROLS[control]}" if control else RECIPES[name].label


def config_of(method: str, budget: int, seed: int, run: Path, more: dict[str, Any]) -> PipelineConfig:
    """The config of a run, sized to its budget in model calls. Raises InputError for a budget that is too small."""
    label_of(method)
    name, _, control = method.partition(":")
    recipe = RECIPES[name]
    overrides = {"run": str(run), "seed": seed, "budget.model_calls": budget, **more, **recipe.settings}
    config = read_pipeline_config(CONFIG, overrides)
    if control == "all":
        config = _updated(config, "select", {"threshold": _LOWEST})
    return _many_rounds(config, budget) if recipe.rounds else _one_round(config, budget)


class Uninformed:
    """A reward that does not look at its samples: the same for all, or 1 for a quarter of them, drawn by their ids.

    Of a quarter the shapes world's own reward is above its threshold, too.
    """

    def __init__(self, control: str, seed: int) -> None:
        self._all, self._seed = control == "all", seed

    def __call__(self, samples: torch.Tensor, prompts: Sequence[str], sample_ids: Sequence[int]) -> torch.Tensor:
        """(B,) of samples (B, ...)."""
        if self._all:
            return torch.ones(len(prompts))
        draws = uniform(self._seed, torch.as_tensor(sample_ids), 0, Stream.REWARD)
        return (draws < _ACCEPTED_SHARE).to(torch.float32)


def _one_round(config: PipelineConfig, budget: int) -> PipelineConfig:
    """As many prompts as the sampling share has room for, and steps for what is left."""
    group = config.sample.candidates * config.sample.steps * _calls_a_sample(config)
    prompts = int(_SAMPLING_SHARE * budget) // group
    step = config.train.calls_of_a_row * config.train.batch_size
    steps = (budget - prompts * group) // step
    if prompts < 1 or steps < 1:
        raise InputError(f"budget of {budget} model calls: too little for a group of {group} and a step of {step}")
    return _updated(_updated(config, "sample", {"prompts": prompts}), "train", {"steps": steps, "rounds": 1})


def _many_rounds(config: PipelineConfig, budget: int) -> PipelineConfig:
    rounds = budget // config.calls(config.sample.steps, _calls_a_sample(config))
    if rounds < 1:
        raise InputError(f"budget of {budget} model calls: too little for a round of {config.method}")
    return _updated(config, "train", {"rounds": rounds})


def _calls_a_sample(config: PipelineConfig) -> int:
    """See `calls_of`, for a config without its model."""
    assert config.sample.guidance is not None
    return 1 if config.sample.guidance <= 1.0 else 2


def _updated(config: PipelineConfig, table: str, values: dict[str, Any]) -> PipelineConfig:
    return config.model_copy(update={table: getattr(config, table).model_copy(update=values)})
