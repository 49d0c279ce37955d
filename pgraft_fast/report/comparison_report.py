"""The report of methods compared at equal budgets, and its table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.diagnostics import mean_interval
from pgraft_fast.report.page import Picture, Section, Table, write_page
from pgraft_fast.report.pipeline_report import category_sections, prompts_section
from pgraft_fast.report.plots import Curve, bars_png, curves_png
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.evaluation import Evaluation

_NOTE = (
    "Held-out prompts at the same seeds; a backward pass counts as two model calls. Gain: relative to the base, 95 % "
    "interval over prompts, with several seeds over seeds. Beyond its control: points of reward over the same run with "
    "everything kept or with a reward that does not look at the samples. Best: at the scale of guidance, of those "
    "tried, where the reward is highest. Seconds: of sampling, scoring and training, without evaluation. Vendi: how "
    "many different samples those of a prompt are worth."
)
PHASES = ("sample", "score", "accept", "train")


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of `Compared.row`; those of the same method and budget are averaged over seeds."""
    header = ["method", "model calls", "reward", "gain", "beyond its control", "best, at guidance", "seconds", "Vendi"]
    cells = []
    by = grouped(rows)
    for (method, budget), mine in by.items():
        row = [_label(mine[0]), "-", f"{_mean(mine, 'reward'):.4f}", "-", "-", _best(mine), "-",
                f"{_mean(mine, 'vendi'):.2f}"]  # fmt: skip
        if method != "base":
            row[1] = f"{_mean(mine, 'model_calls'):,.0f}"
            row[3] = _gain(mine)
            row[4] = _beyond(mine, [control for name in by if name[0].startswith(f"{method}:") and name[1] == budget
                                    for control in by[name]])  # fmt: skip
            row[6] = f"{_mean(mine, 'seconds'):.0f}"
        cells.append(row)
    return Table(header, cells, _NOTE)


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
    """Rows by (method, budget): base first, then budget by budget, methods in the order of the rows."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["budget"]):
        groups.setdefault((row["method"], row["budget"]), []).append(row)
    return groups


def write_comparison_report(
    out: Path, task: Task, lead: str, rows: Sequence[Mapping[str, Any]], qualities: Mapping[str, Mapping[str, Any]],
    evaluations: Mapping[str, Evaluation], candidates: int,
) -> Path:  # fmt: skip
    """Write out/report/index.html. qualities, evaluations: of each method, first seed and largest budget."""
    names = {row["method"]: _label(row) for row in rows}
    sections = [
        Section("Result", table=comparison_table(rows), pictures=[_curves(rows), *_guidance(rows)]),
        prompts_section(task, {names[name]: evaluation for name, evaluation in evaluations.items()}, candidates),
        *category_sections({names[name]: quality for name, quality in qualities.items()}),
        Section("Where the time went", pictures=_times(rows)),
    ]
    return write_page(out / "report", "Fine-tuning on shapes, compared", lead, sections)


def _curves(rows: Sequence[Mapping[str, Any]]) -> Picture:
    by = grouped(rows)
    start = _mean(by["base", 0], "reward")
    curves = []
    for method in dict.fromkeys(name for name, _ in by if name != "base"):
        budgets = sorted(budget for name, budget in by if name == method)
        rewards = [_mean(by[method, budget], "reward") for budget in budgets]
        curves.append(Curve(_label(by[method, budgets[0]][0]), [0.0, *map(float, budgets)], [start, *rewards]))
    return Picture(
        "reward-budget", curves_png(curves, "model calls", "mean reward"), "Mean reward against the budget",
        "Mean reward on held-out prompts against the budget in model calls.",
    )  # fmt: skip


def _guidance(rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Reward against guidance, where several scales were tried; largest budget, without the controls."""
    most = max(row["budget"] for row in rows)
    curves = []
    for (method, budget), mine in grouped(rows).items():
        if budget not in (0, most) or ":" in method or len(mine[0].get("guidance") or ()) < 2:
            continue
        scales = sorted(mine[0]["guidance"], key=float)
        rewards = [sum(row["guidance"][scale] for row in mine) / len(mine) for scale in scales]
        curves.append(Curve(_label(mine[0]), [float(scale) for scale in scales], rewards))
    if not curves:
        return []
    return [
        Picture(
            "reward-guidance", curves_png(curves, "guidance", "mean reward"), "Mean reward against guidance",
            "Mean reward on held-out prompts against the scale of guidance in sampling.",
        )
    ]  # fmt: skip


def _times(rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    most = max(row["budget"] for row in rows)
    return [
        Picture(
            f"time-{method}", bars_png({phase: _mean(mine, f"{phase}_seconds") for phase in PHASES}, "seconds"),
            f"Seconds by phase, {_label(mine[0])}", f"{_label(mine[0])}: wall time by phase.",
        )
        for (method, budget), mine in grouped(rows).items() if budget == most and ":" not in method
    ]  # fmt: skip


def _label(row: Mapping[str, Any]) -> str:
    return str(row.get("label") or row["method"])


def _best(rows: Sequence[Mapping[str, Any]]) -> str:
    if any(row.get("best_reward") is None for row in rows):
        return "-"
    scales = sorted({float(row["best_guidance"]) for row in rows})
    ends = " to ".join(f"{scale:g}" for scale in dict.fromkeys((scales[0], scales[-1])))
    return f"{_mean(rows, 'best_reward'):.4f}, {ends}"


def _beyond(rows: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]]) -> str:
    """Over the control of the same seed, where there is one; with several seeds their 95 % interval."""
    by_seed = {row["seed"]: row["reward"] for row in controls}
    gains = torch.tensor([row["reward"] - by_seed[row["seed"]] for row in rows if row["seed"] in by_seed])
    if not gains.numel():
        return "-"
    mean = f"{100 * float(gains.mean()):+.1f}"
    if gains.numel() == 1:
        return mean
    over_seeds = mean_interval(gains)
    return f"{mean} ({100 * over_seeds.low:+.1f} to {100 * over_seeds.high:+.1f})"


def _gain(rows: Sequence[Mapping[str, Any]]) -> str:
    gains = torch.tensor([row["gain"] for row in rows], dtype=torch.float64)
    low, high = rows[0]["gain_ci"]
    if len(rows) > 1:
        over_seeds = mean_interval(gains)
        low, high = over_seeds.low, over_seeds.high
    return f"{100 * float(gains.mean()):+.1f} % ({100 * low:+.1f} to {100 * high:+.1f})"


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(row[name] for row in rows)) / len(rows)
