"""Noise keyed by (run seed, sample id, step), and the streams that keep its uses apart.

The 32-bit step word carries the stream in its top byte, so a trajectory's noise, the draws of an acceptance
rule and the noise of training never meet.
"""

import math
from dataclasses import dataclass
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
    FIELD_NOISE = 6
    FIELD_TIME = 7
    FIELD_ROWS = 8
    DATA_NOISE = 9
    PROMPT_DROPOUT = 10
    TRAIN_STEPS = 11
    TRAIN_PAIRS = 12
    REWARD = 13
    PILOT = 14


@dataclass(frozen=True)
class NoiseKey:
    """Standard normal noise by its key, not made yet: sample_id, number: (B,) int64 of a stream of `seed`."""

    seed: int
    sample_id: Tensor
    number: Tensor
    stream: Stream

    def step(self) -> Tensor:
        """(B,) int64: the step words."""
        return step_words(self.number, self.stream, self.sample_id.device)


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
    words = step_words(step, stream, sample_id.device)
    values = philox_normal(seed, sample_id, words, math.prod(shape), dtype)
    return values.view(*values.shape[:-1], *shape)


def uniform(seed: int, sample_id: Tensor, step: int | Tensor, stream: Stream) -> Tensor:
    """One number in (0, 1) for each sample id and step, float64. Shapes as in `normal`."""
    words = step_words(step, stream, sample_id.device)
    return words_to_uniform(philox_words(seed, sample_id, words, 1)).squeeze(-1)


def step_word(step: int, stream: Stream) -> int:
    """The 32-bit step word of a number of a stream, as the operations take it. Raises InputError."""
    if not 0 <= step < MAX_STEP:
        raise InputError(f"step {step} is outside [0, {MAX_STEP})")
    return step + (int(stream) << 24)


def step_words(step: int | Tensor, stream: Stream, device: torch.device) -> Tensor:
    """As `step_word`, for tensors of numbers (not checked) too: int64."""
    if isinstance(step, int):
        return torch.full((), step_word(step, stream), dtype=torch.int64, device=device)
    return step.to(device, torch.int64) + (int(stream) << 24)
