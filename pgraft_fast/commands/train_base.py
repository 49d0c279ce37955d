"""`pgraft-fast train-base`: the recipe of a task's shipped weights."""

from pathlib import Path
from typing import Any

from pgraft_fast.commands.console import Terminal
from pgraft_fast.errors import InputError
from pgraft_fast.finetune.checkpoint import run_lock
from pgraft_fast.finetune.signals import stop_on_signals
from pgraft_fast.tasks.digits.recipe import train_all


def train_base(task: str, out: Path, seed: int) -> dict[str, Any]:
    """Train into `out`; a config's task.weights can point there. Raises InputError, StorageError, StoppedError."""
    if task != "digits":
        raise InputError(f"task {task!r} has no recipe; known: digits")
    with run_lock(out), stop_on_signals() as stop:
        return {"out": str(out), **train_all(out, seed, Terminal().line, stop.check)}
