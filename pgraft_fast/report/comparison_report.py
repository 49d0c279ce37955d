"""The report of methods compared at equal budgets, and its table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.diagnostics import mean_interval
from pgraft_fast.report.page import Picture, Section, Table, write_page
from pgraft_fast.report.plots import Curve, bars_png, curves_png
from pgraft_fast.report.text_report import category_sections, prompts_section
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.evaluation import Evaluation

_NAMES = {"base": "base", "pgraft": "P-GRAFT", "graft": "GRAFT", "ddpo": "DDPO"}
_NOTE = (
    "Held-out prompts at the same seeds; a backward pass counts as two model calls. Gain: relative to the base, 95 % "
    "interval over prompts, with several seeds over seeds. Seconds, and points of reward gained per 100 CPU seconds: "
    "of sampling, scoring and training, without evaluation. Vendi: how many different samples those of a prompt are "
    "worth."
)
PHASES = ("sample", "score", "accept", "train")


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of `Compared.row`; those of the same method and budget are averaged over seeds."""
    header = ["method", "model calls", "reward", "gain", "seconds", "CPU s", "points / 100 CPU s", "Vendi"]
    cells = []
    for (method, _), mine in grouped(rows).items():
        told = [_NAMES[method], "-", f"{_mean(mine, 'reward'):.4f}", *["-"] * 4, f"{_mean(mine, 'vendi'):.2f}"]
        if method != "base":
            told[1] = f"{_mean(mine, 'model_calls'):,.0f}"
            told[3] = _gain(mine)
            told[4] = f"{_mean(mine, 'seconds'):.0f}"
            told[5] = f"{_mean(mine, 'cpu_seconds'):.0f}"
            told[6] = f"{1e4 * _mean(mine, 'gain_per_cpu_second'):.1f}"
        cells.append(told)
    return Table(header, cells, _NOTE)


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
    """Rows by (method, budget): base first, then budget by budget."""
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["budget"], list(_NAMES).index(row["method"]))):
        found.setdefault((row["method"], row["budget"]), []).append(row)
    return found


def write_comparison_report(
    out: Path, task: Task, lead: str, rows: Sequence[Mapping[str, Any]], qualities: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Evaluation], candidates: int,
) -> Path:  # fmt: skip
    """Write out/report/index.html. qualities, found: of each method, first seed and largest budget."""
    sections = [
        Section("Result", table=comparison_table(rows), pictures=[_curves(rows)]),
        prompts_section(task, {_NAMES[name]: one for name, one in found.items()}, candidates),
        *category_sections({_NAMES[name]: quality for name, quality in qualities.items()}),
        Section("Where the time went", pictures=_times(rows)),
    ]
    return write_page(out / "report", "P-GRAFT, GRAFT and DDPO on shapes", lead, sections)


def _curves(rows: Sequence[Mapping[str, Any]]) -> Picture:
    by = grouped(rows)
    start = _mean(by["base", 0], "reward")
    curves = []
    for method in dict.fromkeys(name for name, _ in by if name != "base"):
        budgets = sorted(budget for name, budget in by if name == method)
        rewards = [_mean(by[method, budget], "reward") for budget in budgets]
        curves.append(Curve(_NAMES[method], [0.0, *map(float, budgets)], [start, *rewards]))
    return Picture(
        "reward-budget", curves_png(curves, "model calls", "mean reward"), "Mean reward against the budget",
        "Mean reward on held-out prompts against the budget in model calls.",
    )  # fmt: skip


def _times(rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    most = max(row["budget"] for row in rows)
    by = grouped(rows)
    return [
        Picture(
            f"time-{method}",
            bars_png({phase: _mean(by[method, most], f"{phase}_seconds") for phase in PHASES}, "seconds"),
            f"Seconds by phase, {_NAMES[method]}", f"{_NAMES[method]}: wall time by phase.",
        )
        for method in _NAMES if (method, most) in by
    ]  # fmt: skip


def _gain(rows: Sequence[Mapping[str, Any]]) -> str:
    gains = torch.tensor([row["gain"] for row in rows], dtype=torch.float64)
    low, high = rows[0]["gain_ci"]
    if len(rows) > 1:
        over_seeds = mean_interval(gains)
        low, high = over_seeds.low, over_seeds.high
    return f"{100 * float(gains.mean()):+.1f} % ({100 * low:+.1f} to {100 * high:+.1f})"


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(row[name] for row in rows)) / len(rows)
