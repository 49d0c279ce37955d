"""Methods beside their controls at an equal budget on the shapes world, and what half of the kept rows costs."""

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pgraft_fast.commands.comparison import ComparisonSettings, compare
from pgraft_fast.commands.subjects import subject_of
from pgraft_fast.finetune import Ledger, collect, train
from pgraft_fast.tasks.evaluation import Evaluation
from pgraft_fast_benchmarks.goal_kinds import Goal
from pgraft_fast_benchmarks.harness import Each, Row, Settings, run_parts

GOALS: tuple[Goal, ...] = ()
SHOWN: tuple[str, ...] = ()
DETAILS: dict[str, str] = {}
DETAILS_NOTE = ""

_SEEDS = (0, 1, 2)
_AT_LEAST = ("pgraft", "graft", "graft-clean", "ddpo", "nft")
_METHODS = {
    80_000: (*_AT_LEAST, "pgraft:random", "graft:random", "graft-clean:all"),
    160_000: _AT_LEAST,
}  # fmt: skip
_KEPT = (2, 1)
_LEFT_OUT = ("method", "reward_ci", "gain_ci", "categories", "guidance")


def run(settings: Settings, each: Each) -> dict[str, Any]:
    """Measure all; these rows have no peers. each: told the name and the rows of a part when it is done."""
    # A run takes minutes: each is a part, and told as soon as it is done.
    methods: dict[int, tuple[str, ...]] = settings.by_size(_METHODS, {40_000: _AT_LEAST}, {2_000: ("pgraft", "ddpo")})
    common = settings.by_size(
        ComparisonSettings(guidances=(2.0, 3.0, 5.0)), ComparisonSettings(), ComparisonSettings(samples=8, steps=2)
    )
    bases: dict[int, list[Evaluation]] = {}
    parts: list[tuple[str, Callable[[], Iterable[Row]]]] = [("kept", partial(_kept, settings))]
    for budget, named in methods.items():
        for seed in _SEEDS if settings.size == "full" else _SEEDS[:1]:
            for method in named:
                comparison = replace(common, methods=(method,), budgets=(budget,), seeds=(seed,))
                parts.append((f"seed {seed} {method} {budget}", partial(_compared, comparison, bases)))
    return run_parts(parts, settings, each)


def _compared(comparison: ComparisonSettings, bases: dict[int, list[Evaluation]]) -> Iterator[Row]:
    """One run, after its base where that is not known yet."""
    for row in (compared.row() for _, compared in compare(comparison, lambda line: None, lambda: None, bases=bases)):
        yield {
            "op": "methods", "case": "shapes", "provider": row["method"], "gate": "ok",
            **{name: value for name, value in row.items() if name not in _LEFT_OUT},
            "reward_low": row["reward_ci"][0], "reward_high": row["reward_ci"][1],
            "gain_low": row["gain_ci"][0] if row["gain_ci"] else None,
            "gain_high": row["gain_ci"][1] if row["gain_ci"] else None,
            **{f"reward_{name}": reward for name, reward in row["categories"].items()},
            **{f"reward_at_guidance_{scale}": reward for scale, reward in row["guidance"].items()},
        }  # fmt: skip


def _kept(settings: Settings) -> list[Row]:
    """Seconds of the same passes over the best 2 and the best 1 of each group of one round, in turn."""
    prompts, epochs, times = settings.by_size((256, 16, 5), (64, 8, 3), (16, 1, 0))
    seconds: dict[int, list[float]] = {kept: [] for kept in _KEPT}
    steps: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = ComparisonSettings(steps=2).of("pgraft-state", 100_000, 0, Path(folder))
        for turn in range(times + 1):
            for kept in _KEPT:
                config = recipe.model_copy(
                    update={
                        "sample": recipe.sample.model_copy(update={"prompts": prompts}),
                        "select": recipe.select.model_copy(update={"rule": "top_k", "k": kept, "threshold": None}),
                        "train": recipe.train.model_copy(update={"epochs": epochs}),
                    }
                )
                subject = subject_of(config, lambda line: None)
                task, config, ledger = subject.task, subject.config, Ledger()
                assert subject.learner is not None
                candidates = collect(
                    task.model, task.schedule, subject.reward, task.prompts, config, shape=task.shape,
                    parameterization=task.parameterization, cuts=(config.cut,), ledger=ledger,
                )  # fmt: skip
                report = train(
                    subject.learner, candidates.kept_for(config.cut, config.train), task.schedule, seed=0,
                    parameterization=task.parameterization, ledger=ledger,
                )  # fmt: skip
                steps[kept] = report.steps
                # The first turn warms up.
                seconds[kept] += [ledger.seconds["train"]] if turn or not times else []
                subject.close()
    base = seconds[_KEPT[0]]
    return [
        {
            "op": "kept", "case": "shapes", "provider": f"best {kept} of 4", "gate": "ok", "kept": kept,
            "train_seconds": statistics.median(readings), "optimizer_steps": steps[kept],
            "share_of_time": statistics.median(reading / whole for reading, whole in zip(readings, base, strict=True)),
        }
        for kept, readings in seconds.items()
    ]  # fmt: skip
