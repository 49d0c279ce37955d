"""The tables of a config that say which rewards there are and what is done when one fails."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_serializer

from pgraft_fast.finetune.settings import Settings
from pgraft_fast.rewards.urls import without_secrets
from pgraft_fast.rewards.vqa_score import ANSWER, QUESTION


class WeightedSettings(Settings):
    """weight: in the sum. batch_size: samples of one call, None for as many as are sampled at once."""

    weight: float = Field(default=1.0, allow_inf_nan=False)
    batch_size: PositiveInt | None = None


class ModelSettings(WeightedSettings):
    """dtype: of the weights while they are used."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


class ClipScoreSettings(ModelSettings):
    """See `ClipScore`. model: a local folder."""

    kind: Literal["clip_score"]
    model: str
    prefix: str = ""


class PickScoreSettings(ModelSettings):
    """See `PickScore`. model: a local folder."""

    kind: Literal["pick_score"]
    model: str


class AestheticSettings(ModelSettings):
    """See `AestheticScore`. clip: a local folder. weights: a local file."""

    kind: Literal["aesthetic"]
    clip: str
    weights: str


class VqaScoreSettings(ModelSettings):
    """See `VqaScore`. model: a local folder."""

    kind: Literal["vqa_score"]
    model: str
    question: str = QUESTION
    answer: str = ANSWER
    batch_size: PositiveInt | None = 8


class JpegSettings(WeightedSettings):
    """See `JpegSize`; jpeg_size is jpeg_incompressibility."""

    kind: Literal["jpeg_size", "jpeg_incompressibility", "jpeg_compressibility"]


class CallableSettings(WeightedSettings):
    """A function of (samples) or (samples, prompts), see `Reward`. function: file.py:function."""

    kind: Literal["callable"]
    function: str


class CommandSettings(WeightedSettings):
    """See `CommandReward`. start_seconds: that it may take until it is ready."""

    kind: Literal["command"]
    command: str | list[str]
    start_seconds: PositiveFloat = 600.0


class HttpSettings(WeightedSettings):
    """See `HttpReward`. url: ${NAME} in it is an environment variable. Saved without its password and other secrets."""

    kind: Literal["http"]
    url: str = Field(repr=False)

    @field_serializer("url")
    def _saved(self, url: str) -> str:
        return without_secrets(url)


class TaskRewardSettings(WeightedSettings):
    """A reward that the task has under this name."""

    kind: Literal["task"]
    name: str


RewardSettings = Annotated[
    ClipScoreSettings
    | PickScoreSettings
    | AestheticSettings
    | VqaScoreSettings
    | JpegSettings
    | CallableSettings
    | CommandSettings
    | HttpSettings
    | TaskRewardSettings,
    Field(discriminator="kind"),
]


class PolicySettings(Settings):
    """See `Policy`."""

    on_failure: Literal["retry", "drop", "stop"] = "retry"
    retries: NonNegativeInt = 2
    timeout_seconds: PositiveFloat = Field(default=300.0, allow_inf_nan=False)
    max_dropped_share: float = Field(default=0.05, ge=0, le=1)
