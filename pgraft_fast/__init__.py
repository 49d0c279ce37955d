"""P-GRAFT: reward fine-tuning of diffusion and flow models through their noisy intermediate states.

Names are loaded when they are first used, so importing the package costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # For editors and type checkers; what is loaded is in `_HOME` and `_PARTS`.
    from pgraft_fast import diagnostics as diagnostics
    from pgraft_fast import diffusion as diffusion
    from pgraft_fast import errors as errors
    from pgraft_fast import finetune as finetune
    from pgraft_fast import inverse_noise as inverse_noise
    from pgraft_fast import ops as ops
    from pgraft_fast import pipelines as pipelines
    from pgraft_fast import rewards as rewards
    from pgraft_fast import runs as runs
    from pgraft_fast import sampling as sampling
    from pgraft_fast import schedulers as schedulers
    from pgraft_fast import selection as selection
    from pgraft_fast import tasks as tasks
    from pgraft_fast.diffusion import Schedule as Schedule
    from pgraft_fast.finetune import FinetuneSettings as FinetuneSettings
    from pgraft_fast.finetune import Prompts as Prompts
    from pgraft_fast.finetune import pgraft_loss as pgraft_loss
    from pgraft_fast.finetune.cut_plan import plan_cut as plan_cut
    from pgraft_fast.inverse_noise import NoiseCorrector as NoiseCorrector
    from pgraft_fast.inverse_noise.invert import invert as invert
    from pgraft_fast.ops import use_backend as use_backend
    from pgraft_fast.pipelines.accelerated.accelerate import accelerate as accelerate
    from pgraft_fast.pipelines.accelerated.accelerate import restore as restore
    from pgraft_fast.pipelines.adapters.callback import PGraftCallback as PGraftCallback
    from pgraft_fast.pipelines.adapters.files import save_adapter as save_adapter
    from pgraft_fast.pipelines.adapters.loading import load_adapter as load_adapter
    from pgraft_fast.pipelines.adapters.loading import unload_adapter as unload_adapter
    from pgraft_fast.pipelines.corrected import CorrectedPipeline as CorrectedPipeline
    from pgraft_fast.pipelines.loras import Lora as Lora
    from pgraft_fast.rewards import Reward as Reward
    from pgraft_fast.runs.pgraft_trainer import PGraftTrainer as PGraftTrainer
    from pgraft_fast.runs.pgraft_trainer import Result as Result
    from pgraft_fast.runs.pipeline_settings import Budget as Budget
    from pgraft_fast.runs.pipeline_settings import PGraftConfig as PGraftConfig
    from pgraft_fast.sampling import guided as guided
    from pgraft_fast.sampling.rollout import rollout as rollout
    from pgraft_fast.selection import accept as accept
    from pgraft_fast.selection import acceptance_law as acceptance_law

__version__ = "0.1.0"

_HOME = {
    "Budget": "pgraft_fast.runs.pipeline_settings",
    "CorrectedPipeline": "pgraft_fast.pipelines.corrected",
    "FinetuneSettings": "pgraft_fast.finetune",
    "Lora": "pgraft_fast.pipelines.loras",
    "NoiseCorrector": "pgraft_fast.inverse_noise",
    "PGraftCallback": "pgraft_fast.pipelines.adapters.callback",
    "PGraftConfig": "pgraft_fast.runs.pipeline_settings",
    "PGraftTrainer": "pgraft_fast.runs.pgraft_trainer",
    "Prompts": "pgraft_fast.finetune",
    "Result": "pgraft_fast.runs.pgraft_trainer",
    "Reward": "pgraft_fast.rewards",
    "Schedule": "pgraft_fast.diffusion",
    "accelerate": "pgraft_fast.pipelines.accelerated.accelerate",
    "accept": "pgraft_fast.selection",
    "acceptance_law": "pgraft_fast.selection",
    "guided": "pgraft_fast.sampling",
    "invert": "pgraft_fast.inverse_noise",
    "load_adapter": "pgraft_fast.pipelines.adapters.loading",
    "pgraft_loss": "pgraft_fast.finetune",
    "plan_cut": "pgraft_fast.finetune.cut_plan",
    "restore": "pgraft_fast.pipelines.accelerated.accelerate",
    "rollout": "pgraft_fast.sampling",
    "save_adapter": "pgraft_fast.pipelines.adapters.files",
    "unload_adapter": "pgraft_fast.pipelines.adapters.loading",
    "use_backend": "pgraft_fast.ops",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604

# Parts with more to offer, there without an import of their own.
_PARTS = (
    "diagnostics",
    "diffusion",
    "errors",
    "finetune",
    "inverse_noise",
    "ops",
    "pipelines",
    "rewards",
    "runs",
    "sampling",
    "schedulers",
    "selection",
    "tasks",
)


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"pgraft_fast.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pgraft_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PARTS])
