"""Settings of a run that fine-tunes a pipeline: those of the engine, and the short form that a user writes."""

from typing import Literal

from pydantic import Field

from pgraft_fast.finetune.settings import (
    BudgetSettings,
    SampleSettings,
    SelectSettings,
    TrainSettings,
)
from pgraft_fast.rewards import Policy
from pgraft_fast.runs.settings import EvaluateSettings, RunSettings
from pgraft_fast.schema import Batch, Count, Cut, Name, Positive, Rate, Scale, Seed, Settings, Steps, Times
from pgraft_fast.text_to_image.learners import LoraSettings

Solver = Literal["auto", "ddpm", "ddim", "euler", "euler_sde", "heun", "dpmpp_2m"]


class Budget(BudgetSettings):
    """See `BudgetSettings`: gpu_hours, wall_seconds, joules, model_calls; the first that is used up ends the run."""


class Lora(Settings):
    """rank: 0 trains all weights. alpha: the scale is alpha / rank, default the rank. targets: ends of the names of
    layers; default the projections of attention.
    """

    rank: int = Field(default=16, ge=0, le=2**14)
    alpha: Positive | None = None
    targets: list[Name] | None = None

    def settings(self) -> LoraSettings:
        """For the learner."""
        return LoraSettings(**self.model_dump(exclude_none=True))


class PipelineSampleSettings(SampleSettings):
    """See `SampleSettings`. guidance: scale, None is the pipeline's own. A batch is drawn, then scored."""

    prompts: Count | None = None  # type: ignore[assignment]
    candidates: Count = 4
    guidance: Scale | None = None
    solver: Solver = "auto"  # type: ignore[assignment]
    batch_size: Batch = 16
    overlap: Literal[False] = False


class PipelineRunSettings(RunSettings):
    """A whole run, in the engine's words."""

    mode: Literal["eager"] = "eager"
    sample: PipelineSampleSettings = PipelineSampleSettings()
    checkpointing: bool = False
    lora: Lora = Lora()
    policy: Policy = Policy()


class PGraftConfig(Settings):
    """What `PGraftTrainer` needs beside pipeline, reward and prompts.

    method: "pgraft"; "graft", its baseline without a cut; "ddpo". cut: share of the steps that the untouched model
    makes, or "auto". candidates: samples of a prompt, of which `keep` are kept, default a quarter. prompts: of a round;
    default as many as fill the budget. steps: of a trajectory. guidance: scale, by whatever name the pipeline has for
    it; default its own. solver: default a stochastic one. budget: see `Budget`. lora: see `Lora`. run: folder of the
    run, which the same call goes on with. objective, strength, epochs, batch_size, micro_batch, learning_rate, ema: of
    the training, see `TrainSettings`; objective: default "contrast" for pipelines, whose samples are guided, "state"
    for models of one's own. checkpointing: of activations, slower and smaller. evaluate: samples of held-out
    prompts, drawn before and after.
    """

    method: Literal["pgraft", "graft", "ddpo"] = "pgraft"
    cut: Cut = 0.25
    candidates: Count = 4
    keep: Count | None = None
    prompts: Count | None = None
    rounds: Times = 1
    steps: Steps = 25
    guidance: Scale | None = None
    solver: Solver = "auto"
    sample_batch: Batch = 16
    budget: Budget = Budget()
    lora: Lora = Lora()
    run: Name = "runs/pgraft"
    seed: Seed = 0
    objective: Literal["state", "clean", "contrast"] | None = None
    strength: Positive = 8.0
    epochs: Times = 2
    batch_size: Batch = 16
    micro_batch: Batch | None = None
    learning_rate: Rate = 1e-4
    ema: float = Field(default=0.9, ge=0, lt=1)
    checkpointing: bool = False
    evaluate: Count = 64

    def settings(self) -> PipelineRunSettings:
        """In the engine's words. Raises InputError, pydantic's ValidationError."""
        keep = max(1, self.candidates // 4) if self.keep is None else self.keep
        return PipelineRunSettings(
            run=self.run, seed=self.seed, method=self.method, budget=self.budget, lora=self.lora,
            checkpointing=self.checkpointing,
            sample=PipelineSampleSettings(
                prompts=self.prompts, candidates=self.candidates, steps=self.steps, guidance=self.guidance,
                solver=self.solver, batch_size=self.sample_batch,
            ),
            select=SelectSettings(k=keep),
            train=TrainSettings(
                cut=self.cut, objective=self.objective or "contrast", strength=self.strength, advantage="reward",
                rounds=self.rounds, epochs=self.epochs, batch_size=self.batch_size, micro_batch=self.micro_batch,
                learning_rate=self.learning_rate, ema=self.ema,
            ),
            evaluate=EvaluateSettings(samples=self.evaluate),
        )  # fmt: skip
