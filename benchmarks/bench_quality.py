"""What the compute buys: reward against device-hours of GRAFT and P-GRAFT, distance against FLOPs of flows."""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pgraft_fast.commands.demo import DemoSettings, run_demo
from pgraft_fast.diagnostics import frechet_distance
from pgraft_fast.diffusion import normal
from pgraft_fast.finetune import SampleSettings, TrainSettings
from pgraft_fast.inverse_noise import generate
from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast.tasks.digits.data import SHAPE
from pgraft_fast.tasks.digits.dequantised import dequantised, load_mlp_flow
from pgraft_fast_benchmarks.environment import environment
from pgraft_fast_benchmarks.goal_kinds import Goal
from pgraft_fast_benchmarks.harness import Each, Row, Settings

GOALS: tuple[Goal, ...] = ()
SHOWN: tuple[str, ...] = ()
DETAILS: dict[str, str] = {}
DETAILS_NOTE = ""

_STEPS = (5, 10, 20, 50, 100, 200)


class _Silent:
    """A terminal that says nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def table(self, title: str, table: object) -> None:
        """Nothing."""

    def advance(self, done: int, what: str) -> None:
        """Nothing."""

    def progress(self, total: int) -> Any:
        """Nothing."""
        return nullcontext()


def run(settings: Settings, each: Each) -> dict[str, Any]:
    """Measure all; these rows have no peers. each: told the name and the rows of a part when it is done."""
    rows: list[Row] = []
    for name, part in (("reward", _rewards), ("distance", _distances)):
        found = part(settings)
        each(name, found)
        rows += found
    return {
        **environment(settings.device),
        "backend": settings.backend or "by device",
        "size": settings.size,
        "rows": rows,
    }


def _rewards(settings: Settings) -> list[Row]:
    """The demo: same rollouts and training compute for every method."""
    seeds = settings.by_size(3, 1, 1)
    given = DemoSettings(seeds=seeds)
    if settings.small:
        given = DemoSettings(
            seeds=1, cuts=(0.0, 0.25), sample=SampleSettings(prompts=4, candidates=16, steps=5),
            train=TrainSettings(steps=3, batch_size=8), samples=32, reference_samples=64,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found = run_demo(given, Path(folder), _Silent())  # type: ignore[arg-type]
    rows = []
    for row in found["rows"]:
        low, high = row["reward_ci"]
        kept = ("cut", "seed", "reward", "fd_accepted", "fd_data", "precision", "recall", "model_calls", "seconds")
        rows.append(
            {
                "op": "demo", "case": "digits", "provider": row["method"], "gate": "ok",
                **{key: row[key] for key in kept},
                "reward_low": low, "reward_high": high, "device_hours": float(f"{row['seconds'] / 3600:.6g}"),
                "demo_seconds": found["seconds"], "peak_rss_mb": found["peak_rss_mb"],
            }
        )  # fmt: skip
    return rows


def _distances(settings: Settings) -> list[Row]:
    """The flow of dequantised digits at several numbers of steps: FLOPs counted, distance in classifier features."""
    n = settings.by_size(10_000, 10_000, 64)
    model, task = load_mlp_flow(), digits_task(DigitsSettings())
    reference = task.features(dequantised("train", n, 1))
    floor = frechet_distance(task.features(dequantised("train", n, 3)), reference)
    noise = normal(2, torch.arange(n), 0, SHAPE)
    rows = []
    for steps in _STEPS:
        with FlopCounterMode(display=False) as counter:
            generate(model, noise[:1], steps)
        distance = frechet_distance(task.features(generate(model, noise, steps, batch_size=1000)), reference)
        rows.append(
            {
                "op": "distance", "case": "digits flow", "provider": "base", "gate": "ok", "steps": steps,
                "flops_per_image": counter.get_total_flops(), "fd_data": distance, "fd_floor": floor, "batch": n,
            }
        )  # fmt: skip
    return rows
