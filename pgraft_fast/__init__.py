"""P-GRAFT: reward fine-tuning of diffusion and flow models through their noisy intermediate states.

Names are loaded when they are first used, so importing the package costs next to nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Budget": "pgraft_fast.runs.pipeline_settings",
    "CorrectedPipeline": "pgraft_fast.integrations",
    "FinetuneSettings": "pgraft_fast.finetune",
    "Lora": "pgraft_fast.runs.pipeline_settings",
    "NoiseCorrector": "pgraft_fast.inverse_noise",
    "PGraftCallback": "pgraft_fast.integrations",
    "PGraftConfig": "pgraft_fast.runs.pipeline_settings",
    "PGraftTrainer": "pgraft_fast.runs.pgraft_trainer",
    "Prompts": "pgraft_fast.finetune",
    "Result": "pgraft_fast.runs.pgraft_trainer",
    "Schedule": "pgraft_fast.diffusion",
    "Trainer": "pgraft_fast.finetune",
    "accelerate": "pgraft_fast.integrations",
    "accept": "pgraft_fast.selection",
    "acceptance_law": "pgraft_fast.selection",
    "guided": "pgraft_fast.sampling",
    "invert": "pgraft_fast.inverse_noise",
    "load_adapter": "pgraft_fast.integrations.adapters",
    "pgraft_loss": "pgraft_fast.finetune",
    "plan_cut": "pgraft_fast.finetune.cut_plan",
    "restore": "pgraft_fast.integrations",
    "rollout": "pgraft_fast.sampling",
    "unload_adapter": "pgraft_fast.integrations.adapters",
    "use_backend": "pgraft_fast.ops",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604

# Parts with more to offer, there without an import of their own.
_PARTS = (
    "diagnostics",
    "diffusion",
    "errors",
    "finetune",
    "integrations",
    "inverse_noise",
    "ops",
    "pipelines",
    "rewards",
    "runs",
    "sampling",
    "schedulers",
    "selection",
    "tasks",
    "text_to_image",
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
