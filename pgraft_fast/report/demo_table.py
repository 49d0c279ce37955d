"""The rows of a demo as one table: means and intervals over seeds."""

from collections.abc import Mapping
from math import isfinite, nan
from typing import Any

import torch

from pgraft_fast.diagnostics import mean_interval
from pgraft_fast.report.page import Table

_NOTE = (
    "Reward: mean and 95 % interval over seeds. FD: Frechet distance in the classifier's features, to samples that the "
    "rule accepts from the reference (separate rollouts) and to the training digits. Precision and recall: against "
    "those accepted samples. Model calls and seconds: sampling and training of one seed, without evaluation; a "
    "backward pass counts as two calls."
)
_NOTE_OF_MEASURES = (
    "Mean and 95 % interval over seeds. FD: Frechet distance in the task's features, to the data and to samples that "
    "the rule accepts from the reference. Copies kept: trained on every accepted sample, not on one of those that are "
    "the same. Best of N: of each group of the rollouts the sample with the highest reward, nothing is trained. Model "
    "calls and seconds: sampling and training of one seed, without evaluation; a backward pass counts as two calls. "
    "Data: real samples, measured alike."
)


def row_name(row: dict[str, Any]) -> str:
    """base, best of N, graft, or p-graft with its cut; whether copies were kept."""
    name = f"p-graft {row['cut']:g}" if row["method"] == "p-graft" else row["method"]
    return f"{name}, copies kept" if row.get("copies") else name


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{method: {metric: mean over seeds, "reward_half": half-width of Student's 95 % interval over seeds}}; "measures":
    {name: (mean, half-width)} where there are some.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(map(row_name, rows)):
        mine = [row for row in rows if row_name(row) == name]
        numbers = ("reward", "fd_accepted", "fd_data", "precision", "recall", "model_calls", "seconds")
        summary[name] = {key: _mean([row[key] for row in mine]) for key in numbers}
        reward = mean_interval(torch.tensor([row["reward"] for row in mine]))
        summary[name]["reward_half"] = reward.high - reward.mean
        if "measures" in mine[0]:
            intervals = {
                key: mean_interval(torch.tensor([row["measures"][key] for row in mine])) for key in mine[0]["measures"]
            }
            summary[name]["measures"] = {
                key: (interval.mean, interval.high - interval.mean) for key, interval in intervals.items()
            }
    return summary


def _mean(values: list[float | None]) -> float:
    """nan where one is not known."""
    return sum(nan if value is None else value for value in values) / len(values)


def demo_table(
    summary: dict[str, dict[str, Any]], accepted_reward: float | None, data: Mapping[str, float] | None = None
) -> Table:
    """One row a method and, with their reward, one for the accepted samples, which are the target. data: measures of
    real samples, which have a row then.
    """
    measures = summary["base"].get("measures")
    if measures:
        return _table_of_measures(summary, list(measures), accepted_reward, data)
    header = ["method", "reward", "FD accepted", "FD data", "precision", "recall", "model calls", "seconds"]
    cells = [
        [
            name,
            _with_half(row["reward"], row["reward_half"], 4),
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


def _table_of_measures(
    summary: dict[str, dict[str, Any]],
    names: list[str],
    accepted_reward: float | None,
    data: Mapping[str, float] | None,
) -> Table:
    # Three figures of the base's.
    digits = {key: 1 if summary["base"]["measures"][key][0] >= 10.0 else 3 for key in names}
    header = ["method", "reward", *names, "FD accepted", "FD data", "model calls", "seconds"]
    cells = [
        [
            name,
            _with_half(row["reward"], row["reward_half"], 3),
            *(_with_half(mean, half, digits[key]) for key, (mean, half) in row["measures"].items()),
            *(f"{row[key]:.3g}" for key in ("fd_accepted", "fd_data")),
            f"{row['model_calls']:,.0f}",
            f"{row['seconds']:.1f}",
        ]
        for name, row in summary.items()
    ]
    if accepted_reward is not None:
        cells.append(["accepted (target)", f"{accepted_reward:.3f}", *["-"] * (len(header) - 2)])
    if data is not None:
        cells.append(["data", "-", *(_with_half(data[key], nan, digits[key]) for key in names), *["-"] * 4])
    return Table(header, cells, _NOTE_OF_MEASURES)


def _with_half(mean: float, half: float, digits: int) -> str:
    if not isfinite(mean):
        return "-"
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if isfinite(half) else "")
