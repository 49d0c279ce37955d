"""P-GRAFT: reward fine-tuning of diffusion and flow models through their noisy intermediate states.

Names are loaded when they are first used, so importing the package costs next to nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "FinetuneSettings": "pgraft_fast.finetune",
    "Prompts": "pgraft_fast.finetune",
    "Rollout": "pgraft_fast.sampling",
    "Schedule": "pgraft_fast.diffusion",
    "Trainer": "pgraft_fast.finetune",
    "accept": "pgraft_fast.selection",
    "acceptance_law": "pgraft_fast.selection",
    "guided": "pgraft_fast.sampling",
    "pgraft_loss": "pgraft_fast.finetune",
    "rollout": "pgraft_fast.sampling",
    "use_backend": "pgraft_fast.ops",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pgraft_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
