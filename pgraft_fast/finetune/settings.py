"""Settings of a run, each checked when it is made: closed schemas, no unknown key."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class Settings(BaseModel):
    """Base: unknown keys are errors, values are not converted in silence, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SampleSettings(Settings):
    """How the candidates of a round are drawn.

    prompts: groups a round. candidates: samples a group. steps, solver, eta: see `rollout`.
    batch_size: trajectories at once.
    """

    prompts: PositiveInt = 10
    candidates: PositiveInt = 16
    steps: PositiveInt = 25
    solver: Literal["ddpm", "ddim", "euler", "euler_sde", "heun", "dpmpp_2m"] = "ddpm"
    eta: float | None = Field(default=None, ge=0)
    batch_size: PositiveInt = 256


class SelectSettings(Settings):
    """Which candidates are kept: see `accept`."""

    rule: Literal["top_k", "best_of_n", "classical", "threshold", "preference", "binary"] = "top_k"
    k: PositiveInt | None = None
    temperature: PositiveFloat | None = None
    r_max: float | None = None
    threshold: float | None = None
    empty: Literal["skip", "best", "raise"] = "skip"


class TrainSettings(Settings):
    """How the kept rows are trained on.

    cut: share of the steps left to the reference model, 0 is GRAFT. steps: optimiser steps a round of batch_size
    rows. ema: decay of the averaged weights, which are the result; 0 is off. clip: limit of the gradient's norm.
    """

    cut: float = Field(default=0.25, ge=0, lt=1)
    objective: Literal["state", "clean"] = "state"
    rounds: PositiveInt = 1
    steps: PositiveInt = 200
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 3e-4
    weight_decay: float = Field(default=0.0, ge=0)
    ema: float = Field(default=0.98, ge=0, lt=1)
    clip: PositiveFloat = 1.0


class BudgetSettings(Settings):
    """Limits of a run; none set means that the rounds alone end it.

    wall_seconds and gpu_hours count from start to exit on every device, idle and lost work included.
    model_calls: forward passes of one sample, a backward pass counts as two. Evaluation is measured, and
    limited by the two time budgets, but not counted in model_calls.
    """

    wall_seconds: PositiveFloat | None = None
    gpu_hours: PositiveFloat | None = None
    model_calls: PositiveInt | None = None

    def seconds(self) -> float | None:
        """The tighter of the two time limits."""
        limits = [self.wall_seconds, None if self.gpu_hours is None else 3600.0 * self.gpu_hours]
        return min((limit for limit in limits if limit is not None), default=None)


class FinetuneSettings(Settings):
    """Everything that a `Trainer` needs to know beside the model and the reward.

    mode: "eager"; "compile", the models through torch.compile, which takes a minute and more at the start; "graph", the
    trajectories as CUDA graphs.
    """

    seed: int = Field(default=0, ge=0, lt=2**63)
    mode: Literal["eager", "compile", "graph"] = "eager"
    sample: SampleSettings = SampleSettings()
    select: SelectSettings = SelectSettings(k=4)
    train: TrainSettings = TrainSettings()
    budget: BudgetSettings = BudgetSettings()

    @model_validator(mode="after")
    def _rule_fits(self) -> Self:
        select, n = self.select, self.sample.candidates
        if select.rule == "top_k" and select.k is None:
            raise ValueError("select.k is missing: rule top_k needs it")
        if select.k is not None and select.k > n:
            raise ValueError(f"select.k={select.k} is more than sample.candidates={n}")
        return self

    def future(self) -> dict[str, object]:
        """The keys that decide what the run computes; a resumed run must have the same."""
        return self.model_dump(exclude={"budget": True, "train": {"rounds"}})
