"""P-GRAFT, GRAFT and DDPO on the shapes world at equal budgets, sampled at the same seeds.

Every method starts from the shipped model, with the settings of configs/shapes.toml. P-GRAFT and GRAFT sample once and
train on what they keep; DDPO takes as many rounds as the budget has room for.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.commands.finetune import trainer_of
from pgraft_fast.commands.subjects import Subject, subject_of
from pgraft_fast.commands.text_config import TextConfig, read_text_config
from pgraft_fast.diagnostics import mean_interval
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Ledger
from pgraft_fast.finetune.settings import CALLS_OF_A_TRAINED_SAMPLE
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.evaluation import Evaluation, evaluate, quality_of

CONFIG = Path(__file__).parent.parent / "configs" / "shapes.toml"
METHODS = ("pgraft", "graft", "ddpo")
# Share of the budget that P-GRAFT and GRAFT sample with; the rest trains.
_SAMPLING_SHARE = 0.77
_DDPO_PROMPTS, _DDPO_CANDIDATES = 16, 8
EVALUATED_CANDIDATES = 4


@dataclass(frozen=True)
class ComparisonSettings:
    """methods: of `METHODS`. budgets: model calls of a run, a backward pass counted as two. seeds: of everything drawn.
    samples: of held-out prompts, from each model. model, steps: see configs/shapes.toml.
    """

    methods: tuple[str, ...] = METHODS
    budgets: tuple[int, ...] = (80_000,)
    seeds: tuple[int, ...] = (0,)
    samples: int = 512
    model: str = "sd"
    steps: int = 20

    def of(self, method: str, budget: int, seed: int, run: Path) -> TextConfig:
        """The config of one run, sized to its budget. Raises InputError for a budget that is too small."""
        given = {
            "run": str(run), "seed": seed, "method": method, "model.shipped": self.model,
            "budget.model_calls": budget, "sample.steps": self.steps, "evaluate.samples": self.samples,
        }  # fmt: skip
        config = read_text_config(CONFIG, given)
        return _ddpo(config, budget) if method == "ddpo" else _pgraft(config, budget)


@dataclass(frozen=True)
class Compared:
    """One model. method: "base" or of `METHODS`. evaluation, quality: on held-out prompts. gain: (prompts,) float64
    mean reward of each prompt over that of the base at the same seeds. model_calls, seconds, cpu_seconds: of the run
    without its evaluation. phases: {phase: seconds}.
    """

    method: str
    budget: int
    seed: int
    evaluation: Evaluation
    quality: dict[str, Any]
    gain: Tensor
    model_calls: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    phases: dict[str, float] | None = None

    def row(self) -> dict[str, Any]:
        """JSON-ready numbers. gain: relative to the base, with its 95 % interval over prompts."""
        reward = self.quality["reward"]
        base = reward - float(self.gain.mean())
        gain = mean_interval(self.gain / base) if self.method != "base" else None
        return {
            "method": self.method, "budget": self.budget, "seed": self.seed, "reward": reward,
            "reward_ci": self.quality["reward_ci"], "base": base,
            "gain": None if gain is None else gain.mean,
            "gain_ci": None if gain is None else [gain.low, gain.high],
            "model_calls": self.model_calls, "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "gain_per_cpu_second": None if gain is None else (reward - base) / self.cpu_seconds,
            **{f"{phase}_seconds": round(s, 3) for phase, s in (self.phases or {}).items()},
            "categories": {name: one["reward"] for name, one in self.quality["categories"].items()},
            "vendi": self.quality["diversity"]["vendi"],
        }  # fmt: skip


def compare(
    settings: ComparisonSettings, log: Callable[[str], None], check: Callable[[], None], keep: Path | None = None
) -> Iterator[tuple[Task, Compared]]:
    """The base and then each run of a seed, for all seeds. keep: folder of the adapters.

    log: told what the runs tell. check: called often, may raise. Raises InputError.
    """
    for seed in settings.seeds:
        before: Evaluation | None = None
        for budget in settings.budgets:
            for method in settings.methods:
                with tempfile.TemporaryDirectory() as folder:
                    subject = subject_of(settings.of(method, budget, seed, Path(folder)), log)
                    try:
                        if before is None:
                            before = _evaluated(subject, None, check)
                            yield subject.task, _compared("base", 0, seed, subject, before, before)
                        yield subject.task, _run(subject, budget, before, log, check, keep)
                    finally:
                        subject.close()


def _run(
    subject: Subject, budget: int, before: Evaluation, log: Callable[[str], None], check: Callable[[], None],
    keep: Path | None,
) -> Compared:  # fmt: skip
    config, run = subject.config, Path(subject.config.run)
    ledger = Ledger()
    trainer = trainer_of(subject, run, ledger, log=log, check=check)
    trainer.run_rounds()
    spent: Any = ledger.summary()
    if keep is not None:
        folder = keep / f"{config.method}-{budget}-{config.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        log(f"saved: {subject.save(trainer, folder)}")
    after = _evaluated(subject, trainer.tuned.eval(), check)
    return _compared(
        config.method, budget, config.seed, subject, before, after, model_calls=spent["model_calls"],
        seconds=spent["total_seconds"], cpu_seconds=spent["cpu_seconds"], phases=spent["seconds"],
    )  # fmt: skip


def _evaluated(subject: Subject, tuned: nn.Module | None, check: Callable[[], None]) -> Evaluation:
    """The same prompts and noise for every method."""
    config: Any = subject.config
    asked = config.model_copy(update={"sample": config.sample.model_copy(update={"candidates": EVALUATED_CANDIDATES})})
    return evaluate(
        subject.task, subject.reward, asked, config.evaluate.samples, tuned=tuned,
        cut=None if tuned is None else config.cut, ledger=Ledger(), check=check,
    )  # fmt: skip


def _compared(
    method: str, budget: int, seed: int, subject: Subject, before: Evaluation, after: Evaluation, **spent: Any
) -> Compared:
    quality = quality_of(subject.task, after, None, EVALUATED_CANDIDATES)
    prompts = [one.rewards.view(-1, EVALUATED_CANDIDATES).to(torch.float64).mean(dim=1) for one in (after, before)]
    return Compared(method, budget, seed, after, quality, prompts[0] - prompts[1], **spent)


def _pgraft(config: TextConfig, budget: int) -> TextConfig:
    """One round: as many prompts as the sampling share has room for, and steps for what is left."""
    group = config.sample.candidates * config.sample.steps * _calls_a_sample(config)
    prompts = int(_SAMPLING_SHARE * budget) // group
    step = CALLS_OF_A_TRAINED_SAMPLE * config.train.batch_size
    steps = (budget - prompts * group) // step
    if prompts < 1 or steps < 1:
        raise InputError(f"budget of {budget} model calls: too little for a group of {group} and a step of {step}")
    return _sized(config, {"prompts": prompts}, {"steps": steps, "rounds": 1})


def _ddpo(config: TextConfig, budget: int) -> TextConfig:
    """As many rounds as there is room for."""
    small = _sized(config, {"prompts": _DDPO_PROMPTS, "candidates": _DDPO_CANDIDATES}, {})
    rounds = budget // small.calls(config.sample.steps, _calls_a_sample(config))
    if rounds < 1:
        raise InputError(f"budget of {budget} model calls: too little for a round of DDPO")
    return _sized(small, {}, {"rounds": rounds})


def _calls_a_sample(config: TextConfig) -> int:
    """See `calls_of`, for a config without its model."""
    return 1 if config.sample.guidance <= 1.0 else 2


def _sized(config: TextConfig, sample: dict[str, Any], train: dict[str, Any]) -> TextConfig:
    return config.model_copy(
        update={
            "sample": config.sample.model_copy(update=sample),
            "train": config.train.model_copy(update=train),
        }
    )
