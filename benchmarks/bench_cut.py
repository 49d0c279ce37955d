"""Predicted against reached: the plan of a cut beside a training at each cut, on digits and on shapes.

A cell is a world, a reward and a cut. One round of candidates serves the plan and every training, whose later rounds
sample their own from the model tuned so far; all models are evaluated at the same seeds. Rewards are told as those of
the base that is evaluated plus what is gained.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.commands.recipes import config_of
from pgraft_fast.commands.subjects import subject_of
from pgraft_fast.diagnostics import mean_interval
from pgraft_fast.diffusion import Schedule
from pgraft_fast.finetune import (
    FinetuneSettings,
    Learner,
    Ledger,
    SampleSettings,
    SelectSettings,
    TrainSettings,
    collect,
    train,
)
from pgraft_fast.finetune.cut_plan import CutPlan, plan_from
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.work import Work
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast.tasks.evaluation import EVALUATION_IDS, Evaluation, accepted_of, evaluate, features_of
from pgraft_fast_benchmarks.goal_kinds import Goal
from pgraft_fast_benchmarks.harness import Each, Row, Settings, run_parts
from pgraft_fast_benchmarks.lifted import Lifted, lift

GOALS: tuple[Goal, ...] = ()
SHOWN: tuple[str, ...] = ()
DETAILS: dict[str, str] = {}
DETAILS_NOTE = ""

CUTS = (0.1, 0.25, 0.5, 0.75, 0.9)
_REWARDS = ("symmetry", "stroke_mass", "digit_3")
# Of everything here; the constants of predictions were fitted to others.
_SEED = 10
_SHAPES_BUDGET = 80_000
_SIDE, _BETAS_OF_BLOCKS, _SEEDS_OF_BLOCKS = 8, (0.85, 30.0), (10, 11, 12)
_CUTS_OF_BLOCKS = (0.1, 0.25, 0.5)
_LEVELS = 1000


@dataclass(frozen=True)
class _Regime:
    """groups: of candidates, as many as a run of this size has by default. times: its training steps. steps: of a
    trajectory. rounds: of each training. low: whether low noise levels lie densely, see `_at_low_levels`."""

    groups: int | None = None
    times: int = 1
    steps: int = 25
    rounds: int = 1
    low: bool = False


# Of four accepted a group; few are read often.
_FEW = _Regime(8, 2)
_DIGITS = {
    **{f"digits {reward}": (reward, _Regime()) for reward in _REWARDS},
    **{f"digits {reward} few": (reward, _FEW) for reward in _REWARDS},
    "digits 52 accepted": ("symmetry", _Regime(13, 2)),
    "digits 100 accepted": ("symmetry", _Regime(25, 2)),
    "digits 8 steps": ("symmetry", _Regime(steps=8)),
    "digits 3 rounds": ("symmetry", _Regime(rounds=3)),
    "digits 3 rounds few": ("symmetry", replace(_FEW, rounds=3)),
    "digits low levels": ("symmetry", _Regime(low=True)),
    "digits low levels few": ("symmetry", replace(_FEW, low=True)),
}


@dataclass(frozen=True)
class _World:
    """settings: of the run, whatever its cut. samples: of an evaluation; of the accepted law four times as many."""

    name: str
    task: Task
    reward: Callable[..., object]
    settings: FinetuneSettings
    learner: Learner
    samples: int
    cuts: tuple[float, ...] = CUTS


def run(settings: Settings, each: Each) -> dict[str, Any]:
    """Measure all; these rows have no peers. each: told the name and the rows of a part when it is done."""
    parts: list[tuple[str, Callable[[], list[Row]]]] = [(name, partial(_digits, settings, name)) for name in _DIGITS]
    parts += [(f"shapes {model}", partial(_shapes, settings, model)) for model in ("sd", "sd3")]
    parts += [(f"shapes blocks {seed}", partial(_blocks, settings, seed)) for seed in _SEEDS_OF_BLOCKS]
    return run_parts(parts, settings, each)


def _digits(settings: Settings, name: str) -> list[Row]:
    reward, regime = _DIGITS[name]
    # Given its digit, a model has nothing to learn of a class.
    task = digits_task(DigitsSettings(reward=reward, conditional=not reward.startswith("digit_")))
    prompts, steps, samples = settings.by_size((100, 200, 1000), (50, 100, 400), (8, 4, 16))
    config = FinetuneSettings(
        seed=_SEED,
        sample=SampleSettings(
            prompts=min(regime.groups or prompts, prompts), candidates=16,
            steps=settings.by_size(regime.steps, regime.steps, min(12, regime.steps)),
        ),
        select=SelectSettings(k=4),
        train=TrainSettings(rounds=regime.rounds, steps=regime.times * steps, batch_size=64, learning_rate=1e-3),
    )  # fmt: skip
    task = _at_low_levels(task) if regime.low else task
    return _rows(_World(name, task, task.reward(reward), config, Learner(task.model, config.train), samples))


def _at_low_levels(task: Task) -> Task:
    """The task with time u, t = u^2 being that of its model: half of the steps, and of the levels that training reads,
    lie in the lowest quarter of t."""
    t = (torch.arange(1, _LEVELS + 1, dtype=torch.float64) / _LEVELS).square()
    schedule = Schedule.from_alphas_cumprod(task.schedule.alpha(t).square())
    return replace(
        task, model=Lifted(task.model, task.schedule, task.parameterization, 1, schedule), schedule=schedule
    )  # fmt: skip


def _shapes(settings: Settings, model: str) -> list[Row]:
    budget, samples, steps = settings.by_size((_SHAPES_BUDGET, 512, 20), (20_000, 128, 20), (4_000, 16, 8))
    with _shapes_world(f"shapes {model}", model, budget, samples, {"seed": _SEED, "sample.steps": steps}) as world:
        return _rows(world)


def _blocks(settings: Settings, seed: int) -> list[Row]:
    """Latents of 64 x 64, eight times eight of them a feature, and the best of eight of few prompts, read often."""
    prompts, trained, samples = settings.by_size((32, 200, 256), (32, 50, 128), (20, 4, 16))
    more = {"seed": seed, "sample.steps": settings.by_size(20, 20, 8), "sample.candidates": 8}
    with _shapes_world(f"shapes blocks {seed}", "sd", _SHAPES_BUDGET, samples, more) as world:
        config = world.settings
        config = config.model_copy(
            update={
                "sample": config.sample.model_copy(update={"prompts": prompts}),
                "select": SelectSettings(k=1),
                "train": config.train.model_copy(update={"steps": trained}),
            }
        )
        world.learner.settings = config.train
        task, reward = lift(world.task, world.learner, world.reward, _SIDE, Schedule.scaled_linear(*_BETAS_OF_BLOCKS))
        return _rows(replace(world, task=task, reward=reward, settings=config, cuts=_CUTS_OF_BLOCKS))


@contextmanager
def _shapes_world(name: str, model: str, budget: int, samples: int, more: dict[str, Any]) -> Iterator[_World]:
    overrides = {"model.shipped": model, **more}
    if model == "sd3":
        overrides["lora.targets"] = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    with tempfile.TemporaryDirectory() as folder:
        subject = subject_of(config_of("pgraft", budget, more["seed"], Path(folder), overrides), lambda line: None)
        try:
            assert subject.learner is not None
            yield _World(name, subject.task, subject.reward, subject.config, subject.learner, samples)
        finally:
            subject.close()


def _rows(world: _World) -> list[Row]:
    """Of every cut: what was predicted, and what a training there reached."""
    task, settings, learner = world.task, world.settings, world.learner
    device = next(task.model.parameters()).device
    execution, ledger = Execution("eager", device), Ledger()
    for name in ("run", "frozen", "averaged"):
        setattr(learner, name, execution.of(getattr(learner, name)))
    work = Work(
        model=task.model, schedule=task.schedule, reward=world.reward, settings=settings, shape=task.shape,
        prompts=task.prompts, parameterization=task.parameterization, learner=learner, execution=execution,
        ledger=ledger, device=device, sampling=BatchSize(settings.sample.batch_size, "sampling"),
        training=BatchSize(settings.train.micro_batch or settings.train.batch_size, "training"), log=lambda line: None,
    )  # fmt: skip
    candidates = collect(
        execution.of(task.model), task.schedule, world.reward, task.prompts, settings, shape=task.shape,
        parameterization=task.parameterization, cuts=(0.0, *world.cuts), memory=work.sampling, ledger=ledger,
        device=device,
    )  # fmt: skip
    plan = plan_from(work, candidates, cuts=world.cuts)
    before, law = _evaluated(world, execution), _evaluated(world, execution, law=True)
    accepted = features_of(task, law, accepted_of(task, law, settings))
    first = {name: {key: value.clone() for key, value in group.items()} for name, group in learner.tensors().items()}
    drawn = task.prompts.of_round(settings.seed, 0, settings.sample.prompts)
    rows = []
    for cut in (0.0, *world.cuts):
        learner.load(first, 0)
        # An evaluation brings its own.
        task.prompts.prepare(drawn)
        reached = []
        for round_ in range(settings.train.rounds):
            of_round = candidates if round_ == 0 else collect(
                execution.of(task.model), task.schedule, world.reward, task.prompts, settings.with_cut(cut),
                shape=task.shape, parameterization=task.parameterization, round_=round_, cuts=(cut,),
                tuned=learner.ema.eval(), memory=work.sampling, ledger=ledger, device=device,
            )  # fmt: skip
            train(
                learner, of_round.kept_for(cut, settings.train), task.schedule, seed=settings.seed,
                parameterization=task.parameterization, null_condition=task.prompts.null,
            )  # fmt: skip
            if round_ in (0, settings.train.rounds - 1):
                reached.append(_evaluated(world, execution, tuned=learner.ema.eval(), cut=cut))
        rows.append(_row(world, plan, cut, before, reached, accepted))
    return rows


def _row(
    world: _World, plan: CutPlan, cut: float, before: Evaluation, evaluations: list[Evaluation], accepted: torch.Tensor
) -> Row:
    """evaluations: after the first round, and after the last one where there are several; a plan predicts one round, so
    that nothing judges it then."""
    base, after, rounds = float(before.rewards.nanmean()), evaluations[-1], world.settings.train.rounds
    outlook = next((outlook for outlook in plan.outlooks if outlook.cut == cut), None)
    reached = mean_interval(after.rewards)
    quality = world.task.quality_of(features_of(world.task, after), after.rewards, accepted)
    # What was predicted of the training prompts, from the base of the prompts that are evaluated on.
    low, predicted, high = (
        None if outlook is None or value is None else value - plan.base + base
        for value in ((None,) * 3 if outlook is None else (outlook.low, outlook.predicted, outlook.high))
    )
    return {
        "op": "cut", "case": world.name, "provider": f"cut {cut:g}", "gate": "ok", "cut": cut,
        "planned": plan.cut == cut, "accepted": plan.accepted, "base": base,
        "share_kept": 1.0 if cut == 0.0 else None if outlook is None or outlook.kept is None else outlook.kept.share,
        "share_error": None if outlook is None or outlook.kept is None else outlook.kept.error,
        "predicted": predicted, "predicted_low": low, "predicted_high": high,
        "reached": reached.mean, "reached_low": reached.low, "reached_high": reached.high,
        "inside": None if low is None or high is None or rounds > 1 else low <= reached.mean <= high,
        "rounds": rounds, "reached_first": mean_interval(evaluations[0].rewards).mean,
        "recall": quality["recall"], "fd_accepted": quality["fd_accepted"], "lowest_level": plan.lowest,
        "plan_calls": plan.model_calls, "plan_share": plan.share / rounds,
    }  # fmt: skip


def _evaluated(world: _World, execution: Execution, *, law: bool = False, **model: Any) -> Evaluation:
    """law: other and more samples of the base, that no model is compared on."""
    return evaluate(
        world.task, world.reward, world.settings, 4 * world.samples if law else world.samples, ledger=Ledger(),
        execution=execution, first_id=EVALUATION_IDS << 1 if law else EVALUATION_IDS, **model,
    )  # fmt: skip
