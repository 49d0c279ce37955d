"""`pgraft-fast demo`: GRAFT and P-GRAFT on handwritten digits, side by side.

For each seed one set of rollouts, scored and accepted once, is given to GRAFT (cut 0) and to P-GRAFT at three cuts;
each trains a copy of the reference for the same number of steps on the same accepted trajectories. All samples are
drawn at the same seeds; the accepted law is represented by separate rollouts that no method was trained on.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.amounts import duration
from pgraft_fast.diagnostics import mean_interval
from pgraft_fast.errors import StoppedError
from pgraft_fast.files import to_json, write_file
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
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.signals import stop_on_signals
from pgraft_fast.report import Table
from pgraft_fast.report.demo_report import DemoData, write_demo_report
from pgraft_fast.runs.terminal import Terminal
from pgraft_fast.sizes import MB, megabytes, peak_resident
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast.tasks.evaluation import EVALUATION_IDS, Evaluation, accepted_of, evaluate, features_of

_REFERENCE_IDS = EVALUATION_IDS << 1
_NOTE = (
    "Reward: mean and 95 % interval over seeds. FD: Frechet distance in the classifier's features, to samples that the "
    "rule accepts from the reference (separate rollouts) and to the training digits. Precision and recall: against "
    "those accepted samples. Model calls and seconds: sampling and training of one seed, without evaluation; a "
    "backward pass counts as two calls."
)


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo. cuts: 0 is GRAFT. samples: drawn from each model. reference_samples: drawn for the law."""

    seeds: int = 3
    cuts: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    reward: str = "symmetry"
    sample: SampleSettings = SampleSettings(prompts=100, candidates=16, steps=25, solver="ddpm")
    select: SelectSettings = SelectSettings(rule="top_k", k=4)
    train: TrainSettings = TrainSettings(steps=200, batch_size=64, learning_rate=1e-3, ema=0.98)
    samples: int = 1000
    reference_samples: int = 3200

    def of(self, seed: int, cut: float = 0.0) -> FinetuneSettings:
        """The settings of one seed and cut."""
        training = self.train.model_copy(update={"cut": cut})
        return FinetuneSettings(seed=seed, sample=self.sample, select=self.select, train=training)


def run_demo(settings: DemoSettings, out: Path, terminal: Terminal) -> dict[str, Any]:
    """Run, print the table, write out/report and out/demo.json. Returns the JSON's content."""
    began = time.perf_counter()
    task = digits_task(DigitsSettings(reward=settings.reward))
    demo, total = _Demo(settings, task), settings.seeds * (1 + len(settings.cuts))
    with stop_on_signals() as stop, terminal.progress(total):
        try:
            rows = demo.run(stop.check, terminal)
        except StoppedError as error:
            raise StoppedError(f"{error}; the demo keeps nothing, run it again") from error
    summary = summarise(rows)
    table = demo_table(summary, float(demo.data.accepted_rewards.mean()))
    terminal.table(f"Reward: {settings.reward}", table)
    demo.data.seconds = demo.ledger.seconds
    page = write_demo_report(out, task, settings.of(0), _lead(settings), summary, table, demo.data)
    result: dict[str, Any] = {
        "seconds": round(time.perf_counter() - began, 2),
        "peak_rss_mb": round(peak_resident() / MB, 1),
        "rows": rows,
    }
    write_file(out / "demo.json", to_json(result))
    terminal.line(f"{duration(result['seconds'])}, peak memory {megabytes(peak_resident())}, report: {page}")
    return result


class _Demo:
    def __init__(self, settings: DemoSettings, task: Task) -> None:
        self.settings, self.task = settings, task
        self.reward = task.reward(settings.reward)
        self.device = next(task.model.parameters()).device
        self.ledger = Ledger()
        self.data = DemoData()

    def run(self, check: Callable[[], None], terminal: Terminal) -> list[dict[str, Any]]:
        settings = self.settings
        reference = self._evaluate(0, settings.reference_samples, check, first_id=_REFERENCE_IDS)
        kept = accepted_of(self.task, reference, settings.of(0))
        accepted = features_of(self.task, reference, kept)
        self.data.accepted_rewards = reference.rewards[kept]
        rows: list[dict[str, Any]] = []
        for seed in range(settings.seeds):
            for row in self._one_seed(seed, accepted, check):
                rows.append(row)
                terminal.advance(len(rows), f"seed {seed}")
                terminal.line(
                    f"seed {seed} {row_name(row):12} reward {row['reward']:.4f}  FD accepted {row['fd_accepted']:.2f}"
                )
        return rows

    def _one_seed(self, seed: int, accepted: Tensor, check: Callable[[], None]) -> Iterator[dict[str, Any]]:
        settings, task, ledger = self.settings, self.task, self.ledger
        yield self._row("base", 0.0, seed, self._evaluate(seed, settings.samples, check), accepted, 0, 0.0)
        began, calls_before = time.perf_counter(), ledger.model_calls
        run = Execution("eager", self.device)
        candidates = collect(
            run.of(task.model), task.schedule, self.reward, task.prompts, settings.of(seed), shape=task.shape,
            parameterization=task.parameterization, cuts=settings.cuts, ledger=ledger, check=check,
        )  # fmt: skip
        shared_seconds, shared_calls = time.perf_counter() - began, ledger.model_calls - calls_before
        for cut in settings.cuts:
            began, calls_before = time.perf_counter(), ledger.model_calls
            learner = Learner(task.model, settings.of(seed, cut).train)
            learner.run, learner.frozen = run.of(learner.model), run.of(task.model)
            train(
                learner, candidates.kept_for(cut, learner.settings), task.schedule,
                parameterization=task.parameterization, seed=seed, ledger=ledger, check=check,
            )  # fmt: skip
            seconds = shared_seconds + time.perf_counter() - began
            calls = shared_calls + ledger.model_calls - calls_before
            drawn = self._evaluate(seed, settings.samples, check, tuned=learner.ema.eval(), cut=cut)
            yield self._row("p-graft" if cut else "graft", cut, seed, drawn, accepted, calls, seconds)

    def _evaluate(self, seed: int, samples: int, check: Callable[[], None], **model: Any) -> Evaluation:
        return evaluate(
            self.task, self.reward, self.settings.of(seed), samples, ledger=self.ledger, check=check, **model
        )

    def _row(
        self, method: str, cut: float, seed: int, drawn: Evaluation, accepted: Tensor, calls: int, seconds: float
    ) -> dict[str, Any]:
        with self.ledger.phase("evaluate"):
            quality = self.task.quality_of(features_of(self.task, drawn), drawn.rewards, accepted)
        row = {
            "method": method,
            "cut": cut,
            "seed": seed,
            **quality,
            "model_calls": calls,
            "seconds": round(seconds, 3),
        }
        if seed == 0:
            self.data.evaluations[row_name(row)] = drawn
        return row


def row_name(row: dict[str, Any]) -> str:
    """base, graft, or p-graft with its cut."""
    return f"p-graft {row['cut']:g}" if row["method"] == "p-graft" else row["method"]


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{method: {metric: mean over seeds, "reward_half": half-width of Student's 95 % interval over seeds}}."""
    summary = {}
    for name in dict.fromkeys(map(row_name, rows)):
        mine = [row for row in rows if row_name(row) == name]
        numbers = ("reward", "fd_accepted", "fd_data", "precision", "recall", "model_calls", "seconds")
        summary[name] = {key: sum(row[key] for row in mine) / len(mine) for key in numbers}
        interval = mean_interval(torch.tensor([row["reward"] for row in mine]))
        summary[name]["reward_half"] = interval.high - interval.mean
    return summary


def demo_table(summary: dict[str, dict[str, float]], accepted_reward: float | None) -> Table:
    """One row a method and, with their reward, one for the accepted samples, which are the target."""
    header = ["method", "reward", "FD accepted", "FD data", "precision", "recall", "model calls", "seconds"]
    cells = [
        [
            name,
            f"{row['reward']:.4f}" + (f" ± {row['reward_half']:.4f}" if isfinite(row["reward_half"]) else ""),
            f"{row['fd_accepted']:.2f}",
            f"{row['fd_data']:.2f}",
            f"{row['precision']:.2f}",
            f"{row['recall']:.2f}",
            f"{row['model_calls']:,.0f}",
            f"{row['seconds']:.1f}",
        ]
        for name, row in summary.items()
    ]
    if accepted_reward is not None:
        cells.append(["accepted (target)", f"{accepted_reward:.4f}", *["-"] * 6])
    return Table(header, cells, _NOTE)


def _lead(settings: DemoSettings) -> str:
    sample, training = settings.sample, settings.train
    return (
        f"Digits model tuned towards {settings.reward}: {sample.prompts} groups of {sample.candidates} candidates a "
        f"seed, the best {settings.select.k} of each kept, {training.steps} training steps of {training.batch_size} "
        f"rows for every method, {settings.seeds} seed{'s' if settings.seeds > 1 else ''}."
    )
