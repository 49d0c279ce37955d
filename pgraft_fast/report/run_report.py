"""The report of a fine-tuning run."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.amounts import duration, energy
from pgraft_fast.diffusion import Schedule
from pgraft_fast.finetune import FinetuneSettings
from pgraft_fast.report.copies import copies_sections
from pgraft_fast.report.law import law_section
from pgraft_fast.report.page import Picture, Section, Sound, Table, interval, write_page
from pgraft_fast.report.pipeline_report import category_sections, prompts_section
from pgraft_fast.report.plan_report import plan_section
from pgraft_fast.report.plots import Curve, bars_png, curves_png, histogram_png, picture_grid_png
from pgraft_fast.report.ranks_report import ranks_sections
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.evaluation import Evaluation, pictures_of

SHOWN = 100
# Sounds of each side in a report.
_SOUNDS = 3
# A report's figures are worth so many simple ones.
_FIGURES = 12


def write_run_report(
    run: Path,
    task: Task,
    settings: FinetuneSettings,
    result: Mapping[str, Any],
    before: Evaluation,
    after: Evaluation,
    candidates: Mapping[str, Tensor],
) -> Path:
    """Write run/report. result: as in result.json. candidates: rewards, accepted mask and copies of the last round."""
    lead = (
        f"{_method(settings, task.schedule)}, {len(result['rounds'])} round(s), "
        f"{result['spent']['model_calls']:,} model calls, {duration(result['spent']['total_seconds'])}."
    )
    both = {"before": result["before"], "after": result["after"]}
    sections = [
        quality_section(both),
        *([plan_section(result["cut_plan"])] if result.get("cut_plan") else []),
        *category_sections(both),
        *_samples(task, before, after, settings.sample.candidates),
        _rewards_section(result, before, after, candidates),
        time_section(result["spent"]["seconds"], result["spent"]),
        *ranks_sections(result),
        law_section(settings.select, settings.sample.candidates, before.rewards),
        *copies_sections(settings.select, candidates),
    ]
    return write_page(run / "report", f"Fine-tuning of {task.name}: {run.name}", lead, sections)


def _samples(task: Task, before: Evaluation, after: Evaluation, candidates: int) -> list[Section]:
    """Grids; of prompts that are worth reading, pairs first."""
    shown = np.linspace(0, len(before.samples) - 1, min(len(before.samples), SHOWN)).astype(int)
    evaluations = {"before": before, "after": after}
    rows = torch.from_numpy(shown)
    grids = pictures_section({name: pictures_of(task, evaluation, rows) for name, evaluation in evaluations.items()})
    if task.sounds is not None:
        few = shown[:_SOUNDS]
        grids.sounds.extend(
            Sound(f"sample-{name}-{number}", wav, f"{name}, sample {number}")
            for name, evaluation in evaluations.items()
            for number, wav in enumerate(task.sounds(evaluation.samples[few]), start=1)
        )
    if not task.categories:
        return [grids]
    return [prompts_section(task, evaluations, candidates), grids]


def report_seconds() -> float:
    """What a report of a run will take, from a figure that is drawn and thrown away."""
    figure = [Curve("", [0.0, 1.0], [0.0, 1.0])]
    curves_png(figure, "", "")
    began = time.perf_counter()
    curves_png(figure, "", "")
    return _FIGURES * (time.perf_counter() - began)


def _method(settings: FinetuneSettings, schedule: Schedule) -> str:
    """As people say it, with what it trains."""
    if settings.method == "ddpo":
        return f"DDPO, {settings.ddpo.variant}"
    if settings.method == "nft":
        return "DiffusionNFT"
    objective = f"objective {settings.train.objective}"
    if settings.cut == 0:
        return f"GRAFT, {objective}"
    level = schedule.cut_logsnr(settings.cut)
    return f"P-GRAFT, cut {settings.cut:g} of the steps, a log-SNR of {level:.2f}, {objective}"


def quality_section(rows: Mapping[str, Mapping[str, Any]]) -> Section:
    """Metrics of several sample sets."""
    header = ["samples", "reward", "95 % interval", "FD accepted", "FD data", "precision", "recall"]
    measures = next(iter(rows.values())).get("measures", {})
    cells = [
        [name, *quality_cells(row), *(f"{row['measures'][key]:.4g}" for key in measures)] for name, row in rows.items()
    ]
    note = (
        "FD: Frechet distance in the task's feature space, to samples that the rule accepts from the reference (the "
        "target of one round; several rounds aim further) and to the data. Precision and recall: against those "
        "accepted samples."
    )
    return Section("Result", table=Table([*header, *measures], cells, note))


def quality_cells(row: Mapping[str, Any]) -> list[str]:
    """One row of `Task.quality` as text."""
    rest = ("fd_accepted", "fd_data", "precision", "recall")
    return [
        f"{row['reward']:.4f}",
        interval(row["reward_ci"]),
        *("-" if row[name] is None else f"{row[name]:.2f}" for name in rest),
    ]


def pictures_section(panels: Mapping[str, Any]) -> Section:
    """Samples of each set, evenly taken, the same place being the same seed."""
    pictures = [
        Picture(
            f"samples-{name.replace(' ', '-')}",
            picture_grid_png(panel[np.linspace(0, len(panel) - 1, min(len(panel), SHOWN)).astype(int)]),
            f"Samples, {name}",
            name,
        )
        for name, panel in panels.items()
    ]  # fmt: skip
    text = ["The same place in every grid is the same noise and the same prompt."]
    return Section("Samples at the same seeds", text, pictures=pictures)


def time_section(seconds: Mapping[str, float], spent_in_all: Mapping[str, Any] | None = None) -> Section:
    """Where the wall time went; spent_in_all: of the ledger, for CPU seconds and joules."""
    spent = {phase: value for phase, value in seconds.items() if value > 0}
    picture = Picture(
        "time", bars_png(spent, "seconds"), "Seconds by phase",
        f"Wall time by phase, {duration(sum(spent.values()))} in all.",
    )  # fmt: skip
    text = [] if spent_in_all is None else [_used(spent_in_all)]
    return Section("Where the time went", text, pictures=[picture])


def _used(spent: Mapping[str, Any]) -> str:
    joules = spent.get("joules")
    of_gpu = "" if joules is None else f", {energy(joules)} of the GPU"
    return f"{spent['model_calls']:,} model calls, {duration(spent.get('cpu_seconds', 0.0))} of the CPU{of_gpu}."


def _rewards_section(
    result: Mapping[str, Any], before: Evaluation, after: Evaluation, candidates: Mapping[str, Tensor]
) -> Section:
    rounds = result["rounds"]
    ends = [result[key]["reward_ci"] for key in ("before", "after")]
    halves = [0.0 if "-" in interval(ci) else 0.5 * (ci[1] - ci[0]) for ci in ends]
    calls = [0, rounds[-1]["model_calls"]]
    curves = [Curve("evaluation", calls, [result["before"]["reward"], result["after"]["reward"]], halves)]
    # A round's candidates show the model as it was after the round before.
    spent = [0, *(entry["model_calls"] for entry in rounds[:-1])]
    curves.append(Curve("candidates of a round", spent, [entry["reward"] for entry in rounds]))
    curves.append(Curve("accepted", spent, [entry["reward_accepted"] for entry in rounds]))
    groups = {"before": before.rewards.numpy(), "after": after.rewards.numpy()}
    if candidates:
        kept = candidates["reward"][candidates["accepted"]]
        groups = {"before": groups["before"], "accepted, last round": kept.numpy(), "after": groups["after"]}
    pictures = [
        Picture(
            "reward-compute", curves_png(curves, "model calls", "mean reward"),
            "Mean reward against model calls", "Reward against compute, with 95 % intervals of the evaluations.",
        ),
        Picture(
            "reward-seconds", curves_png(_against_seconds(result), "seconds of the run", "mean reward"),
            "Mean reward against seconds",
            "Reward of each round's candidates against wall time, evaluation and saving included.",
        ),
        Picture(
            "reward-histogram", histogram_png(groups, "reward"),
            "Histogram of rewards before, accepted and after", "Rewards of single samples.",
        ),
    ]  # fmt: skip
    warnings = [f"Round {number}: {entry['warning']}." for number, entry in enumerate(rounds, 1) if "warning" in entry]
    return Section("Reward", warnings, pictures=pictures)


def _against_seconds(result: Mapping[str, Any]) -> list[Curve]:
    rounds = result["rounds"]
    seconds = [entry["seconds"] for entry in rounds]
    return [
        Curve("candidates of a round", seconds, [entry["reward"] for entry in rounds]),
        Curve("accepted", seconds, [entry["reward_accepted"] for entry in rounds]),
    ]
