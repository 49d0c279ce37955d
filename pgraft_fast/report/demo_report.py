"""The report of the demo."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.finetune import FinetuneSettings
from pgraft_fast.report.law import law_section
from pgraft_fast.report.page import Picture, Section, Table, write_page
from pgraft_fast.report.plots import Curve, curves_png, histogram_png
from pgraft_fast.report.run_report import SHOWN, pictures_section, time_section
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.evaluation import Evaluation, pictures_of


@dataclass
class DemoData:
    """What the report shows beside the table. evaluations: by method, at the first seed.

    accepted_rewards: of reference samples that the rule accepted. seconds: by phase.
    """

    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    accepted_rewards: Tensor = field(default_factory=lambda: torch.empty(0))
    seconds: dict[str, float] = field(default_factory=dict)


def write_demo_report(
    out: Path,
    title: str,
    task: Task,
    settings: FinetuneSettings,
    lead: str,
    summary: Mapping[str, Mapping[str, Any]],
    table: Table,
    data: DemoData,
) -> Path:
    """Write out/report/index.html and its pictures. summary: {method: means over seeds}, as in the table."""
    sections = [
        Section("Result", table=table),
        pictures_section({name: _pictures(task, data.evaluations[name]) for name in _drawn(data)}),
        _reward_section(summary, data),
        time_section(data.seconds),
        law_section(settings.select, settings.sample.candidates, data.evaluations["base"].rewards),
    ]
    return write_page(out / "report", title, lead, sections)


def _drawn(data: DemoData) -> list[str]:
    """The methods whose samples are drawn at the same noise; the best of a group have noise of their own."""
    return [name for name in data.evaluations if name != "best of N"]


def _pictures(task: Task, evaluation: Evaluation) -> np.ndarray:
    """Of those samples alone that a grid shows."""
    n = evaluation.rewards.numel()
    return pictures_of(task, evaluation, torch.linspace(0, n - 1, min(n, SHOWN)).to(torch.int64))


def _reward_section(summary: Mapping[str, Mapping[str, Any]], data: DemoData) -> Section:
    base = summary["base"]
    curves = [
        Curve(
            name,
            [0.0, row["model_calls"]],
            [base["reward"], row["reward"]],
            [base["reward_half"], row["reward_half"]] if row["reward_half"] < float("inf") else None,
        )
        for name, row in summary.items()
        if name != "base"
    ]
    groups = {"base": data.evaluations["base"].rewards.numpy(), "accepted": data.accepted_rewards.numpy()}
    # More than these would hide one another: GRAFT and the first P-GRAFT.
    groups |= {name: data.evaluations[name].rewards.numpy() for name in _drawn(data)[1:3]}
    pictures = [
        Picture(
            "reward-compute", curves_png(curves, "model calls", "mean reward"), "Mean reward against model calls",
            "Reward against compute, mean and 95 % interval over seeds.",
        ),
        Picture(
            "reward-histogram", histogram_png(groups, "reward"), "Histogram of rewards before, accepted and after",
            "Rewards of single samples, first seed.",
        ),
    ]  # fmt: skip
    return Section("Reward", pictures=pictures)
