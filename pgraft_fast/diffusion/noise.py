"""Noise keyed by (run seed, sample id, step), and the streams that keep its uses apart.

The 32-bit step word carries the stream in its top byte, so a trajectory's noise, the draws of an acceptance
rule and the noise of training never meet.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.ops import philox_normal, philox_words, words_to_uniform

MAX_STEP = 1 << 24


class Stream(IntEnum):
    """What a random number is for."""

    TRAJECTORY = 0
    ACCEPTANCE = 1
    TRAIN_NOISE = 2
    TRAIN_TIME = 3
    TRAIN_ORDER = 4
    PROMPTS = 5


def normal(
    seed: int,
    sample_id: Tensor,
    step: int | Tensor,
    shape: tuple[int, ...],
    stream: Stream = Stream.TRAJECTORY,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise on the device of sample_id.

    sample_id: (B,) int64. step: a number; (B,) for one a sample; (S, 1) for S steps of every sample.
    Returns (B, *shape), or (S, B, *shape).
    """
    words = _step_words(step, stream, sample_id.device)
    values = philox_normal(seed, sample_id, words, math.prod(shape), dtype)
    return values.view(*values.shape[:-1], *shape)


def uniform(seed: int, sample_id: Tensor, step: int | Tensor, stream: Stream) -> Tensor:
    """One number in (0, 1) for each sample id and step, float64. Shapes as in `normal`."""
    words = _step_words(step, stream, sample_id.device)
    return words_to_uniform(philox_words(seed, sample_id, words, 1)).squeeze(-1)


def _step_words(step: int | Tensor, stream: Stream, device: torch.device) -> Tensor:
    if isinstance(step, int) and not 0 <= step < MAX_STEP:
        raise InputError(f"step {step} is outside [0, {MAX_STEP})")
    return torch.as_tensor(step, dtype=torch.int64, device=device) + (int(stream) << 24)
