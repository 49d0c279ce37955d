"""What the compute buys: reward against device-hours of GRAFT and P-GRAFT, distance against FLOPs of flows."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pgraft_fast.commands.demo import DemoSettings, run_demo
from pgraft_fast.commands.demo_worlds import WORLDS
from pgraft_fast.finetune import SampleSettings, TrainSettings
from pgraft_fast.report.demo_table import row_name
from pgraft_fast_benchmarks.distances import distances
from pgraft_fast_benchmarks.goal_kinds import Goal
from pgraft_fast_benchmarks.harness import Each, Row, Settings, run_parts
from pgraft_fast_benchmarks.silent import Silent

GOALS: tuple[Goal, ...] = ()
SHOWN: tuple[str, ...] = ()
DETAILS: dict[str, str] = {}
DETAILS_NOTE = ""


def run(settings: Settings, each: Each) -> dict[str, Any]:
    """Measure all; these rows have no peers. each: told the name and the rows of a part when it is done."""
    parts: list[tuple[str, Callable[[Settings], list[Row]]]] = [("reward", _rewards), ("distance", distances)]
    if settings.size != "quick":
        # Four minutes each.
        parts += [(world, partial(_sets, world)) for world in WORLDS]
    return run_parts([(name, partial(part, settings)) for name, part in parts], settings, each)


def _sets(world: str, settings: Settings) -> list[Row]:
    """A demo of molecules or layouts, with the task's own measures."""
    demo = WORLDS[world]
    if settings.small:
        sample = demo.sample.model_copy(update={"prompts": 24, "steps": 12})
        training = demo.train.model_copy(update={"steps": 2, "batch_size": 8})
        demo = replace(
            demo, seeds=1, cuts=(0.0,), copies_cuts=(0.0,), sample=sample, train=training, samples=32,
            reference_samples=256,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        summary = run_demo(demo, Path(folder), Silent())  # type: ignore[arg-type]
    kept = ("cut", "seed", "reward", "fd_accepted", "fd_data", "model_calls", "seconds")
    return [
        {
            "op": "demo of sets", "case": world, "provider": row_name(row), "gate": "ok",
            **{key: row[key] for key in kept},
            **{re.sub(r"\W+", "_", name).strip("_"): value for name, value in row["measures"].items()},
            "demo_seconds": summary["seconds"], "peak_rss_mb": summary["peak_rss_mb"],
        }
        for row in summary["rows"]
    ]  # fmt: skip


def _rewards(settings: Settings) -> list[Row]:
    """The demo: same rollouts and training compute for every method."""
    seeds = settings.by_size(3, 1, 1)
    demo = DemoSettings(seeds=seeds)
    if settings.small:
        demo = DemoSettings(
            seeds=1, cuts=(0.0, 0.25), sample=SampleSettings(prompts=4, candidates=16, steps=5),
            train=TrainSettings(steps=3, batch_size=8), samples=32, reference_samples=64,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        summary = run_demo(demo, Path(folder), Silent())  # type: ignore[arg-type]
    rows = []
    for row in summary["rows"]:
        low, high = row["reward_ci"]
        kept = ("cut", "seed", "reward", "fd_accepted", "fd_data", "precision", "recall", "model_calls", "seconds")
        rows.append(
            {
                "op": "demo", "case": "digits", "provider": row["method"], "gate": "ok",
                **{key: row[key] for key in kept},
                "reward_low": low, "reward_high": high, "device_hours": float(f"{row['seconds'] / 3600:.6g}"),
                "demo_seconds": summary["seconds"], "peak_rss_mb": summary["peak_rss_mb"],
            }
        )  # fmt: skip
    return rows
