"""Settings of a run that fine-tunes a pipeline: those of the engine, and the short form that a user writes."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pgraft_fast.finetune.settings import (
    Advantage,
    BudgetSettings,
    Mode,
    SampleSettings,
    SelectSettings,
    TrainSettings,
)
from pgraft_fast.pipelines.loras import Lora
from pgraft_fast.rewards import Policy
from pgraft_fast.runs.settings import EvaluateSettings, RunSettings
from pgraft_fast.schema import Batch, Count, Cut, Name, Part, Positive, Rate, Scale, Seed, Settings, Steps, Times

Shard = Literal["auto", "always", "never"]
Solver = Literal["auto", "ddpm", "ddim", "euler", "euler_sde", "heun", "dpmpp_2m"]


class Budget(BudgetSettings):
    """See `BudgetSettings`: gpu_hours, wall_seconds, joules, model_calls; the first that is used up ends the run."""


class PipelineSampleSettings(SampleSettings):
    """See `SampleSettings`. prompts: default as many as fill the budget. guidance: scale, by whatever name the pipeline
    has for it, default its own. guidance_tuned: that of the tuned model, above the cut; default guidance. solver:
    default a stochastic one.
    """

    prompts: Count | None = None  # type: ignore[assignment]
    candidates: Count = 4
    guidance: Scale | None = None
    guidance_tuned: Scale | None = None
    solver: Solver = "auto"  # type: ignore[assignment]
    batch_size: Batch = 16
    overlap: bool = True


class PipelineTrainSettings(TrainSettings):
    """See `TrainSettings`; without steps, two epochs. checkpointing: of activations, slower and smaller.

    The candidates are those of the guided sampler: `contrast` does not learn guidance from them, the others do. What
    its rows count by, and its strength, are what was best on shapes.
    """

    objective: Literal["state", "clean", "contrast"] = "contrast"
    strength: Positive = 8.0
    advantage: Advantage = "reward"
    epochs: Times | None = 2
    batch_size: Batch = 16
    learning_rate: Rate = 1e-4
    ema: Part = 0.9
    checkpointing: bool = False

    @model_validator(mode="before")
    @classmethod
    def _steps_are_meant(cls, values: Any) -> Any:
        """Steps that are asked for are not passed over for the default epochs."""
        return {"epochs": None, **values} if isinstance(values, dict) and "steps" in values else values


class PipelineRunSettings(RunSettings):
    """A whole run, in the engine's words. shard: on several ranks, whether each holds a share of the denoiser, and of
    what is trained: "always", "never", or "auto", where a rank that held all would have less than half of its card.
    """

    shard: Shard = "never"
    sample: PipelineSampleSettings = PipelineSampleSettings()
    train: PipelineTrainSettings = PipelineTrainSettings()
    lora: Lora = Lora()
    policy: Policy = Policy()

    def with_solver(self, parameterization: str) -> Self:
        """With nothing left open: a stochastic one, so that a decision at the cut says something of the state there."""
        if self.sample.solver != "auto":
            return self
        solver = "euler_sde" if parameterization == "velocity" else "ddpm"
        return self.model_copy(update={"sample": self.sample.model_copy(update={"solver": solver})})

    @model_validator(mode="after")
    def _guidance_fits(self) -> Self:
        sample = self.sample
        if sample.guidance_tuned is None:
            return self
        key = f"sample.guidance_tuned={sample.guidance_tuned}"
        if self.method == "ddpo":
            raise ValueError(f"{key}: DDPO trains the guided answer at sample.guidance; leave it out")
        if sample.guidance is None:
            raise ValueError(f"{key}: sample.guidance is missing; give both")
        if sample.guidance_tuned > 1.0 >= sample.guidance:
            raise ValueError(f"{key}: the candidates are drawn without guidance (sample.guidance={sample.guidance})")
        return self


class PGraftConfig(Settings):
    """What `PGraftTrainer` needs beside pipeline, reward and prompts.

    method: "pgraft"; "graft", its baseline without a cut; "ddpo". cut: share of the steps that the untouched model
    makes, or "auto". candidates: samples of a prompt, of which `keep` are kept, default a quarter. prompts: of a round;
    default as many as fill the budget. steps: of a trajectory. guidance: scale, by whatever name the pipeline has for
    it; default its own. solver: default a stochastic one. budget: see `Budget`. lora: see `Lora`. run: folder of the
    run, which the same call goes on with. objective, strength, epochs, batch_size, micro_batch, learning_rate, ema: of
    the training, see `TrainSettings`; objective: default "contrast" for pipelines, whose samples are guided, "state"
    for models of one's own. checkpointing: of activations, slower and smaller. evaluate: samples of held-out
    prompts, drawn before and after. mode: how the models are called, see `FinetuneSettings`. sample_batch: trajectories
    at once. memory: "auto", on CUDA sample_batch, micro_batch, checkpointing and how much is decoded at once are found
    by a probe of the card where they are left out; "fixed", their defaults. deterministic: see `FinetuneSettings`.
    shard: see `PipelineRunSettings`.
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
    mode: Mode = "auto"
    memory: Literal["auto", "fixed"] = "auto"
    deterministic: bool = False
    shard: Shard = "never"

    def settings(self) -> PipelineRunSettings:
        """In the engine's words. Raises InputError, pydantic's ValidationError."""
        keep = max(1, self.candidates // 4) if self.keep is None else self.keep
        # What is left out is left open there, too.
        sizes = {
            name: getattr(self, name) for name in ("micro_batch", "checkpointing") if name in self.model_fields_set
        }
        sample_batch = {"batch_size": self.sample_batch} if "sample_batch" in self.model_fields_set else {}
        return PipelineRunSettings(
            run=self.run, seed=self.seed, method=self.method, mode=self.mode, budget=self.budget, lora=self.lora,
            memory=self.memory, deterministic=self.deterministic, shard=self.shard,
            sample=PipelineSampleSettings(
                prompts=self.prompts, candidates=self.candidates, steps=self.steps, guidance=self.guidance,
                solver=self.solver, overlap=False, **sample_batch,
            ),
            select=SelectSettings(k=keep),
            train=PipelineTrainSettings(
                cut=self.cut, objective=self.objective or "contrast", strength=self.strength, advantage="reward",
                rounds=self.rounds, epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate,
                ema=self.ema, **sizes,
            ),
            evaluate=EvaluateSettings(samples=self.evaluate),
        )  # fmt: skip
