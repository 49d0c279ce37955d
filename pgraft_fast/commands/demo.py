"""`pgraft-fast demo`: GRAFT and P-GRAFT on handwritten digits, molecules or layouts, side by side.

For each seed one set of rollouts, scored once, is given to GRAFT (cut 0) and to P-GRAFT at several cuts; each trains a
copy of the reference for the same number of steps on the same accepted trajectories. All samples are drawn at the same
seeds; the accepted law is represented by separate rollouts that no method was trained on. Where the rule drops copies,
a method can also train on all that was accepted, and the best of each group stands beside; where there are no copies,
that is the same training, and is done once.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.amounts import duration
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
from pgraft_fast.finetune.candidates import Candidates
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.rounds import choose, dropped_by
from pgraft_fast.finetune.signals import stop_on_signals
from pgraft_fast.report.demo_report import DemoData, write_demo_report
from pgraft_fast.report.demo_table import demo_table, row_name, summarise
from pgraft_fast.runs.terminal import Terminal
from pgraft_fast.sizes import MB, megabytes, peak_resident
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.evaluation import EVALUATION_IDS, Evaluation, accepted_of, evaluate, features_of, quality_of
from pgraft_fast.tasks.known import task_of

_REFERENCE_IDS = EVALUATION_IDS << 1


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo. task: of a config, by name, with options. cuts: 0 is GRAFT. copies_cuts: of them, those that
    are also trained with copies kept, where the rule drops copies. graft_strength: at cut 0 in place of train.strength:
    there training reaches the lowest noise, where a great strength of contrast diverges. samples: drawn from each
    model. reference_samples: drawn for the law.
    """

    task: tuple[tuple[str, Any], ...] = (("name", "digits"),)
    title: str = "handwritten digits"
    seeds: int = 3
    cuts: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    copies_cuts: tuple[float, ...] = ()
    graft_strength: float | None = None
    reward: str = "symmetry"
    sample: SampleSettings = SampleSettings(prompts=100, candidates=16, steps=25, solver="ddpm")
    select: SelectSettings = SelectSettings(rule="top_k", k=4)
    train: TrainSettings = TrainSettings(steps=200, batch_size=64, learning_rate=1e-3, ema=0.98)
    samples: int = 1000
    reference_samples: int = 3200

    def of(self, seed: int, cut: float = 0.0, select: SelectSettings | None = None) -> FinetuneSettings:
        """The settings of one seed and cut."""
        update: dict[str, float] = {"cut": cut}
        if cut == 0.0 and self.graft_strength is not None:
            update["strength"] = self.graft_strength
        chosen = self.select if select is None else select
        return FinetuneSettings(
            seed=seed, sample=self.sample, select=chosen, train=self.train.model_copy(update=update)
        )

    @property
    def drops_copies(self) -> bool:
        """Whether the rule does."""
        return self.select.rule == "binary"

    @property
    def trainings(self) -> list[tuple[str, float, SelectSettings]]:
        """What rows of the table add to their name, the cut, and the rule of what is trained on."""
        trainings = [("", cut, self.select) for cut in self.cuts]
        if self.drops_copies:
            every = SelectSettings(rule="threshold", threshold=self.select.threshold)
            trainings += [("kept", cut, every) for cut in self.copies_cuts]
        return trainings


def run_demo(settings: DemoSettings, out: Path, terminal: Terminal) -> dict[str, Any]:
    """Run, print the table, write out/report and out/demo.json. Returns the JSON's content."""
    began = time.perf_counter()
    task = task_of({**dict(settings.task), "reward": settings.reward})
    each = 1 + settings.drops_copies + len(settings.trainings)
    demo, total = _Demo(settings, task), settings.seeds * each
    with stop_on_signals() as stop, terminal.progress(total):
        try:
            rows = demo.run(stop.check, terminal)
        except StoppedError as error:
            raise StoppedError(f"{error}; the demo keeps nothing, run it again") from error
    summary = summarise(rows)
    of_data = None if task.measures_of_data is None else task.measures_of_data()
    table = demo_table(summary, float(demo.data.accepted_rewards.mean()), of_data)
    terminal.table(f"Reward: {settings.reward}", table)
    demo.data.seconds = demo.ledger.seconds
    title = f"GRAFT and P-GRAFT on {settings.title}"
    page = write_demo_report(out, title, task, settings.of(0), _lead(settings), summary, table, demo.data)
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
        width = 26 if settings.drops_copies else 12
        for seed in range(settings.seeds):
            for row in self._one_seed(seed, accepted, check):
                rows.append(row)
                terminal.advance(len(rows), f"seed {seed}")
                more = "".join(f"  {name} {value:.4g}" for name, value in row.get("measures", {}).items())
                terminal.line(
                    f"seed {seed} {row_name(row):{width}} reward {row['reward']:.4f}{more}"
                    f"  FD accepted {row['fd_accepted']:.2f}"
                )
        return rows

    def _one_seed(self, seed: int, accepted: Tensor, check: Callable[[], None]) -> Iterator[dict[str, Any]]:
        settings, task, ledger = self.settings, self.task, self.ledger
        yield self._row("base", 0.0, seed, self._evaluate(seed, settings.samples, check), accepted, 0, 0.0)
        began, calls_before = time.perf_counter(), ledger.model_calls
        run = Execution("eager", self.device)
        candidates = collect(
            run.of(task.model), task.schedule, self.reward, task.prompts, settings.of(seed), shape=task.shape,
            parameterization=task.parameterization, cuts=sorted({cut for _, cut, _ in settings.trainings}),
            ledger=ledger, check=check,
        )  # fmt: skip
        shared_seconds, shared_calls = time.perf_counter() - began, ledger.model_calls - calls_before
        if settings.drops_copies:
            best = _best_of_groups(candidates)
            yield self._row("best of N", 0.0, seed, best, accepted, shared_calls, shared_seconds)
        rows: dict[float, tuple[Tensor, dict[str, Any]]] = {}
        for copies, cut, select in settings.trainings:
            began, calls_before = time.perf_counter(), ledger.model_calls
            own = settings.of(seed, cut, select)
            chosen = _chosen(candidates, own)
            if cut in rows and torch.equal(rows[cut][0], chosen.acceptance.index):
                yield self._again(rows[cut][1], copies)
                continue
            learner = Learner(task.model, own.train)
            learner.run, learner.frozen = run.of(learner.model), run.of(task.model)
            train(
                learner, chosen.kept_for(cut, learner.settings), task.schedule,
                parameterization=task.parameterization, seed=seed, ledger=ledger, check=check,
            )  # fmt: skip
            seconds = shared_seconds + time.perf_counter() - began
            calls = shared_calls + ledger.model_calls - calls_before
            evaluation = self._evaluate(seed, settings.samples, check, tuned=learner.ema.eval(), cut=cut)
            method = "p-graft" if cut else "graft"
            row = self._row(method, cut, seed, evaluation, accepted, calls, seconds, copies)
            rows[cut] = chosen.acceptance.index, row
            yield row

    def _again(self, row: dict[str, Any], copies: str) -> dict[str, Any]:
        """The row of a training on the same samples, under another name."""
        again = {**row, "copies": copies}
        if row_name(row) in self.data.evaluations:
            self.data.evaluations.setdefault(row_name(again), self.data.evaluations[row_name(row)])
        return again

    def _evaluate(self, seed: int, samples: int, check: Callable[[], None], **model: Any) -> Evaluation:
        return evaluate(
            self.task, self.reward, self.settings.of(seed), samples, ledger=self.ledger, check=check, **model
        )

    def _row(
        self, method: str, cut: float, seed: int, drawn: Evaluation, accepted: Tensor, calls: int, seconds: float,
        copies: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        with self.ledger.phase("evaluate"):
            quality = quality_of(self.task, drawn, accepted, self.settings.sample.candidates)
        row = {
            "method": method,
            "cut": cut,
            "seed": seed,
            **({"copies": copies} if copies else {}),
            **quality,
            "model_calls": calls,
            "seconds": round(seconds, 3),
        }
        if seed == 0:
            self.data.evaluations[row_name(row)] = drawn
        return row


def _chosen(candidates: Candidates, settings: FinetuneSettings) -> Candidates:
    """As these settings accept them."""
    copies = candidates.copies if settings.select.rule == "binary" else None
    numbers = None if copies is None else copies.flatten()
    acceptance = choose(settings, candidates.rewards, candidates.rollout.sample_id, numbers)
    return replace(candidates, acceptance=acceptance, dropped=dropped_by(settings, candidates.rewards, acceptance))


def _best_of_groups(candidates: Candidates) -> Evaluation:
    rewards = candidates.rewards.nan_to_num(nan=-torch.inf)
    rows = torch.arange(rewards.shape[0]) * rewards.shape[1] + rewards.argmax(dim=1).cpu()
    condition = None if candidates.condition is None else candidates.condition[rows].cpu()
    return Evaluation(candidates.rollout.x_0[rows].cpu(), rewards.flatten()[rows].cpu(), condition)


def _lead(settings: DemoSettings) -> str:
    sample, training = settings.sample, settings.train
    select = settings.select
    kept = f"the best {select.k} of each" if select.rule == "top_k" else f"those of at least {select.threshold:g}"
    return (
        f"A model of {settings.title} tuned towards {settings.reward}: {sample.prompts} groups of {sample.candidates} "
        f"candidates a seed, {kept} kept, {training.steps} training steps of {training.batch_size} rows for every "
        f"method, {settings.seeds} seed{'s' if settings.seeds > 1 else ''}."
    )
