"""What the settings of every run have in common."""

from typing import Literal

from pgraft_fast.finetune.settings import FinetuneSettings
from pgraft_fast.schema import Count, Name, Settings


class EvaluateSettings(Settings):
    """samples: drawn before and after at the same seeds, rounded up to whole groups of candidates."""

    samples: Count = 512


class LogSettings(Settings):
    """tensorboard: write run/tensorboard."""

    tensorboard: bool = False


class RunSettings(FinetuneSettings):
    """A whole run. run: its folder. memory: "auto", on CUDA a probe of the card finds batch sizes, checkpointing and
    how much is decoded at once, where the config leaves it open, see `runs.batches`; "fixed", the defaults.
    """

    run: Name
    memory: Literal["auto", "fixed"] = "auto"
    evaluate: EvaluateSettings = EvaluateSettings()
    log: LogSettings = LogSettings()
