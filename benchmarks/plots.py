"""Pictures of what the results hold: images an hour, bandwidth, reward against hours, distance against FLOPs."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from pgraft_fast.report.plots import line_of
from pgraft_fast_benchmarks.records import Row, newest, slug

_HOUR = 3600.0


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write folder/<plot>-<device>.png and .svg for everything that the rows can show; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for device in dict.fromkeys(str(row["device"]) for row in rows):
        here = [row for row in rows if str(row["device"]) == device]
        for name, plot in PLOTS.items():
            figure = Figure(figsize=(8.0, 4.5), layout="constrained")
            if not plot(here, figure):
                continue
            figure.suptitle(f"{device}", fontsize=9, x=0.99, ha="right")
            for kind in ("png", "svg"):
                path = folder / f"{name}-{slug(device)}.{kind}"
                # Without the time of day and drawn names, the same rows give the same file.
                with rc_context({"svg.hashsalt": "pgraft"}):
                    figure.savefig(path, dpi=120, metadata={"Date": None} if kind == "svg" else None)
                written.append(path)
    return written


def images_per_hour(rows: Sequence[Row], figure: Figure) -> bool:
    """By batch and provider, a panel a model."""
    measured = [row for row in newest(rows, "sampling") if row["gate"] == "ok"]
    cases = _grouped(measured, lambda row: str(row["case"]))
    if not cases:
        return False
    axes = _panels(figure, len(cases))
    for axis, (case, mine) in zip(axes, cases.items(), strict=True):
        providers = list(dict.fromkeys(row["provider"] for row in mine))
        batches = sorted({row["batch"] for row in mine})
        for place, provider in enumerate(providers):
            at = {row["batch"]: _HOUR * row["images_per_s"] for row in mine if row["provider"] == provider}
            x = [index + 0.8 * (place + 0.5) / len(providers) - 0.4 for index, size in enumerate(batches) if size in at]
            axis.bar(x, [at[size] for size in batches if size in at], 0.8 / len(providers), label=provider)
        axis.set_xticks(range(len(batches)), [str(size) for size in batches])
        axis.set(title=case, xlabel="batch", ylabel="images per device-hour")
        axis.legend(fontsize=7)
    return True


def bandwidth(rows: Sequence[Row], figure: Figure) -> bool:
    """Bytes that each operation must move by the time that it took, beside the copy in the same run."""
    names, ours, copies = [], [], []
    for label, mine in _grouped(newest(rows, "ops"), lambda row: f"{row['op']} {row['case']}\n{row['shape']}").items():
        speed = {
            row["provider"]: row["bytes"] / (1e6 * row["p50_ms"])
            for row in mine if row["gate"] == "ok" and row.get("bytes") and row["dtype"] == "float32"
        }  # fmt: skip
        if {"ours", "copy"} <= set(speed):
            names.append(label)
            ours.append(speed["ours"])
            copies.append(speed["copy"])
    if not names:
        return False
    axis = figure.subplots()
    places = range(len(names))
    axis.barh([place - 0.2 for place in places], ours, 0.4, label="ours")
    axis.barh([place + 0.2 for place in places], copies, 0.4, label="copy of the result, the limit")
    axis.set_yticks(places, names, fontsize=6)
    axis.invert_yaxis()
    axis.set(xlabel="GB/s of the bytes that must move")
    axis.legend(fontsize=7)
    return True


def reward_per_hour(rows: Sequence[Row], figure: Figure) -> bool:
    """Of each method, its mean over seeds, against the device-hours of sampling and training."""
    runs = [row for row in newest(rows, "quality") if row.get("op") == "demo"]
    if not runs:
        return False
    axis = figure.subplots()
    base = [row["reward"] for row in runs if row["provider"] == "base"]
    for name, mine in _grouped(runs, _method).items():
        if name == "base" or not base:
            continue
        hours = sum(row["device_hours"] for row in mine) / len(mine)
        # The base's own spread is left out, it would be drawn once a method.
        mean, spread = _spread([[sum(base) / len(base)], [row["reward"] for row in mine]])
        axis.errorbar([0.0, hours], mean, yerr=spread, marker="o", capsize=3, label=name)
    axis.set(xlabel="device-hours of sampling and training", ylabel="mean reward")
    axis.set_title("digits towards symmetry: mean, least and greatest of the seeds", fontsize=9)
    axis.legend(fontsize=7)
    return True


def reward_per_budget(rows: Sequence[Row], figure: Figure) -> bool:
    """Reward on held-out prompts of each method against the CPU seconds: mean, least and greatest of the seeds."""
    runs = [row for row in newest(rows, "methods") if row.get("op") == "methods"]
    if not runs:
        return False
    axis = figure.subplots()
    base = [row["reward"] for row in runs if row["provider"] == "base"]
    for name, mine in _grouped(runs, lambda row: str(row["provider"])).items():
        if name == "base":
            continue
        x, values = [0.0], [base]
        for budget in sorted({row["budget"] for row in mine}):
            here = [row for row in mine if row["budget"] == budget]
            x.append(sum(row["cpu_seconds"] for row in here) / len(here))
            values.append([row["reward"] for row in here])
        mean, spread = _spread(values)
        axis.errorbar(x, mean, yerr=spread, marker="o", capsize=3, label=name)
    axis.set(xlabel="CPU seconds of sampling, scoring and training", ylabel="share of right answers, held-out prompts")
    axis.set_title("shapes: mean, least and greatest of the seeds", fontsize=9)
    axis.legend(fontsize=7)
    return True


def cut_prediction(rows: Sequence[Row], figure: Figure) -> bool:
    """Reached reward against the predicted one, a point a world and cut, with the predicted intervals.

    Of several rounds nothing is predicted but the first.
    """
    predicted = [row for row in newest(rows, "cut") if row.get("inside") is not None]
    if not predicted:
        return False
    axis = figure.subplots()
    for number, (name, mine) in enumerate(_grouped(predicted, lambda row: str(row["case"])).items()):
        x, y = ([row[key] - row["base"] for row in mine] for key in ("predicted", "reached"))
        ends = [[row["predicted"] - row["predicted_low"] for row in mine],
                [row["predicted_high"] - row["predicted"] for row in mine]]  # fmt: skip
        style: dict[str, Any] = line_of(number) | {"linestyle": ""}
        axis.errorbar(x, y, xerr=ends, capsize=2, markersize=4, linewidth=0.7, label=name, **style)
    limits = axis.get_ylim()
    axis.plot(limits, limits, color="grey", linewidth=1)
    axis.set(xlabel="predicted gain of reward, with its 95 % interval", ylabel="reached gain of reward")
    axis.legend(fontsize=7)
    return True


def distance_per_flop(rows: Sequence[Row], figure: Figure) -> bool:
    """Frechet distance to the data against the FLOPs of an image: mean, least and greatest of the seeds."""
    measured = [row for row in newest(rows, "quality") if row.get("op") == "distance"]
    if not measured:
        return False
    axis = figure.subplots()
    for number, (name, mine) in enumerate(_grouped(measured, lambda row: str(row["provider"])).items()):
        splits = sorted(_grouped(mine, _split).items(), key=lambda item: item[1][0]["flops_per_image"])
        x = [rows[0]["flops_per_image"] / 1e6 for _, rows in splits]
        values = [[row["fd_data"] for row in rows] for _, rows in splits]
        mean, spread = _spread(values)
        axis.errorbar(x, mean, yerr=spread, marker="o", markersize=4, capsize=2, label=name)
        for place, height, (split, _) in zip(x, mean, splits, strict=True):
            axis.annotate(split, (place, height), fontsize=6, xytext=(3, 3 - 9 * (number % 2)),
                          textcoords="offset points", color=f"C{number}")  # fmt: skip
    floor = min(row["fd_floor"] for row in measured)
    axis.plot([], [], " ", label=f"two draws of the data: {floor:.2g}")
    axis.set(xscale="log", yscale="log", xlabel="MFLOPs per image, counted", ylabel="Frechet distance to the data")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        scale.set_major_formatter(ScalarFormatter())
        scale.set_minor_formatter(NullFormatter())
    axis.legend(fontsize=7)
    return True


PLOTS: dict[str, Callable[[Sequence[Row], Figure], bool]] = {
    "images-per-hour": images_per_hour,
    "bandwidth": bandwidth,
    "reward-per-hour": reward_per_hour,
    "reward-per-budget": reward_per_budget,
    "cut-prediction": cut_prediction,
    "distance-per-flop": distance_per_flop,
}


def _spread(values: Sequence[Sequence[float]]) -> tuple[list[float], list[list[float]]]:
    """The mean of each, and how far its least and its greatest lie below and above."""
    mean = [sum(group) / len(group) for group in values]
    below = [m - min(group) for m, group in zip(mean, values, strict=True)]
    return mean, [below, [max(group) - m for m, group in zip(mean, values, strict=True)]]


def _split(row: Row) -> str:
    """Steps of the base, and of the corrector where there is one."""
    own = row.get("corrector_steps")
    return f"{row['steps']} + {own}" if own else str(row["steps"])


def _method(row: Row) -> str:
    return f"p-graft {row['cut']:g}" if row["provider"] == "p-graft" else str(row["provider"])


def _grouped(rows: Sequence[Row], name: Callable[[Row], str]) -> dict[str, list[Row]]:
    """In the order in which the names come first."""
    order = {label: index for index, label in enumerate(dict.fromkeys(map(name, rows)))}
    ordered = sorted(rows, key=lambda row: order[name(row)])
    return {label: list(mine) for label, mine in groupby(ordered, name)}


def _panels(figure: Figure, count: int) -> list[Axes]:
    figure.set_size_inches(4.0 * min(count, 3), 3.6 * (1 + (count - 1) // 3))
    grid: Any = figure.subplots(1 + (count - 1) // 3, min(count, 3), squeeze=False)
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return axes[:count]
