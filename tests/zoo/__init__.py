"""More of diffusers' pipelines at some ten thousand weights, built from configs: nothing is downloaded."""

from __future__ import annotations

import copy
from typing import Any

from diffusers import DiffusionPipeline

from pgraft_fast_benchmarks.models import seeded

from . import audio, dits, flux_like, qwen_like, unets, video

_FAMILIES = (unets, dits, flux_like, qwen_like, video, audio)
_BUILDERS = {name: builder for family in _FAMILIES for name, builder in family.BUILDERS.items()}
_ARGUMENTS = {name: arguments for family in _FAMILIES for name, arguments in family.ARGUMENTS.items()}
NAMES = tuple(_BUILDERS)


def build(name: str, seed: int = 0) -> DiffusionPipeline:
    """The pipeline `name`, one of NAMES, with random weights: float32, CPU, in eval mode, without a progress bar.

    seed: of the weights; the caller's generator is left as it was.
    """
    return seeded(_BUILDERS[name], seed)


def call_arguments(name: str) -> dict[str, Any]:
    """The least that pipe(**call_arguments(name), num_inference_steps=..., generator=...) needs."""
    return copy.deepcopy(_ARGUMENTS[name])
