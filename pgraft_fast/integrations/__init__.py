"""Work inside of other libraries: diffusers pipelines made faster, handover at the cut in them."""

import importlib
from typing import Any

_HOME = {
    "CorrectedPipeline": "pgraft_fast.integrations.corrected",
    "PGraftCallback": "pgraft_fast.integrations.callback",
    "accelerate": "pgraft_fast.integrations.pipeline",
    "restore": "pgraft_fast.integrations.pipeline",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pgraft_fast.integrations' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
