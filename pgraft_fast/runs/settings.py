"""What the settings of every run have in common."""

from pgraft_fast.finetune.settings import FinetuneSettings
from pgraft_fast.schema import Count, Name, Settings


class EvaluateSettings(Settings):
    """samples: drawn before and after at the same seeds, rounded up to whole groups of candidates."""

    samples: Count = 512


class LogSettings(Settings):
    """tensorboard: write run/tensorboard."""

    tensorboard: bool = False


class RunSettings(FinetuneSettings):
    """A whole run. run: its folder."""

    run: Name
    evaluate: EvaluateSettings = EvaluateSettings()
    log: LogSettings = LogSettings()
