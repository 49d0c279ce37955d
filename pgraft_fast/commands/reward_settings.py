"""The tables of a config that say which rewards there are; for what is done when one fails see `rewards.Policy`."""

from typing import Annotated, Literal

from pydantic import Field, field_serializer

from pgraft_fast.rewards.urls import without_secrets
from pgraft_fast.rewards.vqa_score import ANSWER, QUESTION
from pgraft_fast.schema import Batch, Name, Real, Seconds, Settings, Text


class WeightedSettings(Settings):
    """weight: in the sum. batch_size: samples of one call, None for as many as are sampled at once."""

    weight: Real = 1.0
    batch_size: Batch | None = None


class ModelSettings(WeightedSettings):
    """dtype: of the weights while they are used."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


class ClipScoreSettings(ModelSettings):
    """See `ClipScore`. model: a local folder."""

    kind: Literal["clip_score"]
    model: Name
    prefix: str = ""


class PickScoreSettings(ModelSettings):
    """See `PickScore`. model: a local folder."""

    kind: Literal["pick_score"]
    model: Name


class AestheticSettings(ModelSettings):
    """See `AestheticScore`. clip: a local folder. weights: a local file."""

    kind: Literal["aesthetic"]
    clip: Name
    weights: Name


class VqaScoreSettings(ModelSettings):
    """See `VqaScore`. model: a local folder."""

    kind: Literal["vqa_score"]
    model: Name
    question: str = QUESTION
    answer: str = ANSWER
    batch_size: Batch | None = 8


class JpegSettings(WeightedSettings):
    """See `JpegSize`; jpeg_size is jpeg_incompressibility."""

    kind: Literal["jpeg_size", "jpeg_incompressibility", "jpeg_compressibility"]


class CallableSettings(WeightedSettings):
    """A function of (samples) or (samples, prompts), see `Reward`. function: file.py:function."""

    kind: Literal["callable"]
    function: Name


class CommandSettings(WeightedSettings):
    """See `CommandReward`. start_seconds: that it may take until it is ready."""

    kind: Literal["command"]
    command: Text | list[Text]
    start_seconds: Seconds = 600.0


class HttpSettings(WeightedSettings):
    """See `HttpReward`. url: ${NAME} in it is an environment variable. Saved without its password and other secrets."""

    kind: Literal["http"]
    url: Name = Field(repr=False)

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
