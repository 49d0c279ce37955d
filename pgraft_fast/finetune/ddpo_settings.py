"""Settings of DDPO, the baseline of P-GRAFT (Black et al. 2023, arXiv 2305.13301)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pgraft_fast.schema import Batch, Count, Positive, Settings, Times


class DdpoSettings(Settings):
    """How recorded trajectories are trained on. Defaults are those of TRL's DDPOConfig.

    variant: "importance", clipped ratios to the model that sampled; "score", the plain score-function estimate, which
    holds for one optimiser step a round. clip_range: ratios count within 1 -+ clip_range. advantage_clip: limit of
    |advantage|. statistics: rewards are normalised "per_prompt", over the last buffer_size rewards of each prompt once
    it has min_count, or "global", over the round. inner_epochs: passes over a round. timestep_fraction: share of a
    sample's steps that each pass trains. batch_size: samples an optimiser step, all of their steps together; default
    half a round for importance. log_prob: log-densities are divided by the number of elements ("mean") or not
    ("sum", for which a clip_range of 1e-4 is very tight).
    """

    variant: Literal["importance", "score"] = "importance"
    clip_range: Positive = 1e-4
    advantage_clip: Positive = 5.0
    statistics: Literal["per_prompt", "global"] = "per_prompt"
    buffer_size: Count = 32
    min_count: Count = 16
    inner_epochs: Times = 1
    timestep_fraction: float = Field(default=1.0, gt=0, le=1)
    batch_size: Batch | None = None
    log_prob: Literal["mean", "sum"] = "mean"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_count > self.buffer_size:
            raise ValueError(f"min_count={self.min_count} is more than buffer_size={self.buffer_size} can hold")
        if self.variant == "score" and (self.inner_epochs > 1 or self.batch_size is not None):
            raise ValueError("variant='score' takes one optimiser step a round: leave inner_epochs and batch_size out")
        return self

    def steps_of(self, drawn: int) -> int:
        """Steps of a sample that a pass trains, of so many with noise."""
        return max(1, round(self.timestep_fraction * drawn))

    def most_rows(self, samples: int, drawn: int) -> int:
        """Pairs of sample and step that a round trains at most: each costs 3 model calls, with guidance 6."""
        return samples * self.steps_of(drawn) * self.inner_epochs

    def optimizer_steps_of(self, samples: int) -> int:
        """Optimiser steps of a pass over so many samples."""
        size = samples if self.variant == "score" else self.batch_size or -(-samples // 2)
        return -(-samples // max(1, size))
