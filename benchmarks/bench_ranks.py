"""Rounds of digits on ranks: a launcher's one rank beside none, and two ranks of one thread beside one of two threads.

Each reading is a whole run in processes of its own, one provider after the other; its rounds are told by its history.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pgraft_fast.errors import PgraftError
from pgraft_fast.finetune.checkpoint import load_newest
from pgraft_fast_benchmarks.environment import environment
from pgraft_fast_benchmarks.goal_kinds import Goal
from pgraft_fast_benchmarks.harness import Each, Row, Settings
from pgraft_fast_benchmarks.timing import percentile

GOALS: tuple[Goal, ...] = ()
SHOWN: tuple[str, ...] = ()
DETAILS: dict[str, str] = {}
DETAILS_NOTE = ""

_CONFIG = """
run = "{run}"
[sample]
prompts = {prompts}
candidates = 16
steps = 25
[select]
k = 2
[train]
rounds = {rounds}
epochs = 10
batch_size = 64
learning_rate = 1e-4
[evaluate]
samples = 64
"""
_FINETUNE = ("-m", "pgraft_fast", "finetune")
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# By name: what starts the run, ranks, threads of each.
_PROVIDERS = {
    "ours": ((), 1, 2), "torchrun 1": ((*_TORCHRUN, "1"), 1, 2), "ours 2 ranks": ((*_TORCHRUN, "2"), 2, 1),
}  # fmt: skip


def run(settings: Settings, each: Each) -> dict[str, Any]:
    """Measure all. each: told the rows."""
    size = {
        "prompts": settings.by_size(100, 100, 4),
        "rounds": settings.by_size(6, 4, 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in _PROVIDERS}
    kept: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for reading in range(settings.by_size(5, 2, 1)):
            for name in _PROVIDERS:
                run_folder = Path(folder) / f"{name}-{reading}"
                seconds[name] += _seconds_of_rounds(run_folder, name, size)
                kept[name] = _kept(run_folder)
    rows = [_row(name, seconds, kept, size) for name in _PROVIDERS]
    each("digits round", rows)
    of_run = {"backend": settings.backend or "by device", "size": settings.size}
    return {**environment(settings.device), **of_run, "rows": rows}


def _row(name: str, seconds: dict[str, list[float]], kept: dict[str, Any], size: dict[str, int]) -> Row:
    ours = statistics.median(seconds["ours"])
    times = 1e3 * percentile(seconds[name], 0.5)
    row = {
        "op": "ranks", "case": "digits round", "batch": 16 * size["prompts"], "provider": name,
        "ranks": _PROVIDERS[name][1], "threads_each": _PROVIDERS[name][2], "gate": "ok", "p50_ms": round(times, 3),
        "p20_ms": round(1e3 * percentile(seconds[name], 0.2), 3),
        "p80_ms": round(1e3 * percentile(seconds[name], 0.8), 3),
        "times_ours": round(times / (1e3 * ours), 4), "readings": len(seconds[name]),
    }  # fmt: skip
    if not bool((kept[name] == kept["ours"]).all()):
        return {**row, "gate": "fail", "note": "other candidates were kept than by one process"}
    return row


def _seconds_of_rounds(folder: Path, name: str, size: dict[str, int]) -> list[float]:
    """Of every round but the first, which warms up."""
    launcher, _, threads = _PROVIDERS[name]
    folder.mkdir()
    config = folder / "config.toml"
    config.write_text(_CONFIG.format(run=folder / "run", **size))
    # torchrun starts Python by itself.
    command = [sys.executable, *(launcher or ()), *_FINETUNE, str(config)]
    ended = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise PgraftError(f"{name}: {ended.stderr.strip().splitlines()[-1:]}")
    ends = [entry["seconds"] for entry in json.loads((folder / "run/result.json").read_text())["rounds"]]
    return [after - before for before, after in itertools.pairwise(ends)]


def _kept(folder: Path) -> Any:
    checkpoint = load_newest(folder / "run/checkpoints", lambda line: None)
    assert checkpoint is not None
    return checkpoint.tensors["candidates"]["accepted"]
