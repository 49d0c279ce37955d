"""Sections of the reports of pipelines: the same prompts and seeds side by side, rewards by category."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgraft_fast.amounts import duration
from pgraft_fast.report.page import Picture, Section, Table, interval, write_page
from pgraft_fast.report.plots import side_by_side_png
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.evaluation import Evaluation, pictures_of, prompts_of

_PROMPTS = 12


def write_evaluation_report(
    folder: Path, task: Task, result: Mapping[str, Any], evaluations: Mapping[str, Evaluation], candidates: int
) -> Path:
    """Write folder/report of `pgraft-fast evaluate`."""
    rows = result["rows"]
    cells = [
        [name, f"{row['reward']:.4f}", interval(row["reward_ci"]),
         "-" if row["fd_data"] is None else f"{row['fd_data']:.2f}"]
        for name, row in rows.items()
    ]  # fmt: skip
    note = "FD: Frechet distance to the reference pictures in the task's features, where there are some."
    sections = [
        Section("Result", table=Table(["samples", "reward", "95 % interval", "FD reference"], cells, note)),
        *category_sections(rows),
        prompts_section(task, evaluations, candidates),
    ]
    lead = f"Prompts: {result['prompts']}; {duration(result['spent']['total_seconds'])}."
    return write_page(folder / "report", f"Evaluation of {task.name}", lead, sections)


def prompts_section(task: Task, evaluations: Mapping[str, Evaluation], candidates: int) -> Section:
    """The first samples of some prompts, a row a prompt, a column each set: equal seeds."""
    total = next(iter(evaluations.values())).rewards.numel()
    prompt = prompts_of(task, total, candidates)
    first = np.linspace(0, total // candidates - 1, min(total // candidates, _PROMPTS)).astype(int) * candidates
    rows = torch.from_numpy(first)
    texts = [task.evaluation_prompts.text[int(number)] for number in prompt[rows]]
    columns = {name: pictures_of(task, evaluation, rows) for name, evaluation in evaluations.items()}
    rewards = {name: evaluation.rewards[rows].tolist() for name, evaluation in evaluations.items()}
    picture = Picture(
        "prompts", side_by_side_png(texts, columns, rewards), "The same prompts and seeds, side by side",
        "Held-out prompts, the same seed in a row, with the reward of each picture.",
    )  # fmt: skip
    return Section("The same prompts and seeds", pictures=[picture])


def category_sections(rows: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """Reward by category of held-out prompts, and how different the samples of one prompt are; empty without any."""
    named = {name: row["categories"] for name, row in rows.items() if row.get("categories")}
    if not named:
        return []
    cells: list[list[str]] = []
    for category in next(iter(named.values())):
        summaries = [of_name[category] for of_name in named.values()]
        cells.append([category, str(summaries[0]["samples"]), *map(_with_interval, summaries)])
    note = "Mean reward with its 95 % interval over the means of prompts, which are not trained on."
    table = Table(["category", "samples", *named], cells, note)
    spread = [
        [name, f"{row['diversity']['vendi']:.2f}", _number(row["diversity"]["feature_variance"])]
        for name, row in rows.items() if "diversity" in row
    ]  # fmt: skip
    note = (
        "Of the samples of one prompt, mean over prompts. Vendi: how many different samples they are worth, of cosines "
        "of centred features. Variance: trace of the features' covariance."
    )
    return [
        Section("By category", table=table),
        Section("Diversity", table=Table(["samples", "Vendi score", "feature variance"], spread, note)),
    ]


def _with_interval(summary: Mapping[str, Any]) -> str:
    bounds = summary["reward_ci"]
    return f"{summary['reward']:.3f}" + ("" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
