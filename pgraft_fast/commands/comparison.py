"""Recipes on the shapes world at equal budgets, sampled at the same seeds, each beside the same run without its reward.

Every recipe starts from the shipped model, with the settings of configs/shapes.toml, see `commands.recipes`.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.commands.pipeline_config import PipelineConfig
from pgraft_fast.commands.recipes import Uninformed, config_of, label_of
from pgraft_fast.commands.subjects import subject_of
from pgraft_fast.diagnostics import mean_interval
from pgraft_fast.finetune import Ledger
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.runs.run import trainer_of
from pgraft_fast.runs.subject import Subject
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.evaluation import Evaluation, evaluate, quality_of

METHODS = ("pgraft", "graft", "graft-clean", "graft-clean:all", "ddpo")
EVALUATED_CANDIDATES = 4


@dataclass(frozen=True)
class ComparisonSettings:
    """methods: see `commands.recipes`. budgets: model calls of a run, a backward pass counted as two. seeds: of
    everything drawn. samples: of held-out prompts, from each model. guidances: scales that all are evaluated at, the
    first of which counts. model, steps: see configs/shapes.toml. more: other settings of all runs, by dotted name.
    """

    methods: tuple[str, ...] = METHODS
    budgets: tuple[int, ...] = (80_000,)
    seeds: tuple[int, ...] = (0,)
    samples: int = 512
    guidances: tuple[float, ...] = (2.0,)
    model: str = "sd"
    steps: int = 20
    more: tuple[tuple[str, Any], ...] = ()

    def of(self, method: str, budget: int, seed: int, run: Path) -> PipelineConfig:
        """The config of one run, sized to its budget. Raises InputError for a budget that is too small."""
        overrides = {"model.shipped": self.model, "sample.steps": self.steps, "evaluate.samples": self.samples}
        return config_of(method, budget, seed, run, overrides | dict(self.more))


@dataclass(frozen=True)
class Compared:
    """One model. method: "base" or as asked for. evaluation, quality: on held-out prompts at the first guidance. gain:
    (prompts,) float64 mean reward of each prompt over that of the base at the same seeds. rewards: {guidance: mean}.
    model_calls, seconds, cpu_seconds: of the run without its evaluation. phases: {phase: seconds}.
    """

    method: str
    budget: int
    seed: int
    evaluation: Evaluation
    quality: dict[str, Any]
    gain: Tensor
    rewards: dict[float, float]
    model_calls: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    phases: dict[str, float] | None = None

    def row(self) -> dict[str, Any]:
        """JSON-ready numbers. gain: relative to the base, with its 95 % interval over prompts."""
        reward = self.quality["reward"]
        base = reward - float(self.gain.mean())
        gain = mean_interval(self.gain / base) if self.method != "base" else None
        best = max(self.rewards, key=self.rewards.__getitem__)
        return {
            "method": self.method, "label": "base" if self.method == "base" else label_of(self.method),
            "budget": self.budget, "seed": self.seed, "reward": reward,
            "reward_ci": self.quality["reward_ci"], "base": base,
            "gain": None if gain is None else gain.mean,
            "gain_ci": None if gain is None else [gain.low, gain.high],
            "model_calls": self.model_calls, "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "gain_per_cpu_second": None if gain is None else (reward - base) / self.cpu_seconds,
            **{f"{phase}_seconds": round(s, 3) for phase, s in (self.phases or {}).items()},
            "categories": {name: quality["reward"] for name, quality in self.quality["categories"].items()},
            "vendi": self.quality["diversity"]["vendi"],
            "best_reward": self.rewards[best], "best_guidance": best,
            "guidance": {str(scale): reward for scale, reward in sorted(self.rewards.items())},
        }  # fmt: skip


def compare(
    settings: ComparisonSettings, log: Callable[[str], None], check: Callable[[], None], keep: Path | None = None,
    bases: dict[int, list[Evaluation]] | None = None,
) -> Iterator[tuple[Task, Compared]]:  # fmt: skip
    """The base and then each run of a seed, for all seeds. keep: folder of the adapters.

    log: told what the runs tell. check: called often, may raise. bases: the base's evaluations by seed, which are
    filled in, and neither made nor given again where they are there. Raises InputError.
    """
    bases = {} if bases is None else bases
    for seed in settings.seeds:
        before = bases.setdefault(seed, [])
        for budget in settings.budgets:
            for method in settings.methods:
                with tempfile.TemporaryDirectory() as folder:
                    subject = subject_of(settings.of(method, budget, seed, Path(folder)), log)
                    compared_run = _ComparedRun(settings, method, budget, subject, check)
                    try:
                        if not before:
                            before += compared_run.evaluated(None)
                            yield subject.task, replace(compared_run, method="base", budget=0).compared(before, before)
                        yield subject.task, compared_run.run(before, log, keep)
                    finally:
                        subject.close()


@dataclass(frozen=True)
class _ComparedRun:
    """A run of a comparison."""

    settings: ComparisonSettings
    method: str
    budget: int
    subject: Subject
    check: Callable[[], None]

    def run(self, before: list[Evaluation], log: Callable[[str], None], keep: Path | None) -> Compared:
        """Train, evaluate, and save the adapter where it is to be kept."""
        subject, config = self.subject, self.subject.config
        name, _, control = self.method.partition(":")
        policy = config.method in ("ddpo", "nft")
        if control == "random" or (control == "all" and policy):
            subject = replace(subject, reward=Uninformed(control, config.seed))
        ledger = Ledger()
        trainer = trainer_of(subject, Path(config.run), ledger, log=log, check=self.check)
        trainer.run_rounds()
        spent: Any = ledger.summary()
        if keep is not None:
            folder = keep / "-".join((name, *([control] if control else []), str(self.budget), str(config.seed)))
            folder.mkdir(parents=True, exist_ok=True)
            log(f"saved: {subject.save(trainer, folder)}")
        return self.compared(
            before, self.evaluated(trainer.tuned.eval(), trainer.chosen.cut), model_calls=spent["model_calls"],
            seconds=spent["total_seconds"], cpu_seconds=spent["cpu_seconds"], phases=spent["seconds"],
        )  # fmt: skip

    def evaluated(self, tuned: nn.Module | None, cut: float | None = None) -> list[Evaluation]:
        """At each guidance: the same prompts and noise for every method."""
        config, task = self.subject.config, self.subject.task
        config = config.model_copy(
            update={"sample": config.sample.model_copy(update={"candidates": EVALUATED_CANDIDATES})}
        )
        evaluations = []
        for scale in self.settings.guidances:
            reference: Any = task.model
            above: Any = tuned
            evaluations.append(
                evaluate(
                    replace(task, model=reference.like(way=scale)), self.subject.reward, config,
                    config.evaluate.samples, tuned=None if tuned is None else above.like(way=scale),
                    cut=cut, ledger=Ledger(), check=self.check,
                    execution=Execution("eager", next(reference.parameters()).device),
                )
            )  # fmt: skip
        return evaluations

    def compared(self, before: list[Evaluation], after: list[Evaluation], **spent: Any) -> Compared:
        """after against before, at the first guidance."""
        quality = quality_of(self.subject.task, after[0], None, EVALUATED_CANDIDATES)
        prompts = [evaluations[0].rewards.view(-1, EVALUATED_CANDIDATES).to(torch.float64).mean(dim=1)
                   for evaluations in (after, before)]  # fmt: skip
        rewards = {
            scale: float(evaluation.rewards.nanmean())
            for scale, evaluation in zip(self.settings.guidances, after, strict=True)
        }
        return Compared(
            self.method, self.budget, self.subject.config.seed, after[0], quality, prompts[0] - prompts[1], rewards,
            **spent,
        )  # fmt: skip
