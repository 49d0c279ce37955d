"""Any diffusers pipeline: its own loop watched, driven and explained; made faster; handing over at the cut."""

import importlib
from typing import Any

_HOME = {
    "CorrectedPipeline": "pgraft_fast.pipelines.corrected",
    "PGraftCallback": "pgraft_fast.pipelines.adapters.callback",
    "accelerate": "pgraft_fast.pipelines.accelerated.accelerate",
    "restore": "pgraft_fast.pipelines.accelerated.accelerate",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pgraft_fast.pipelines' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
