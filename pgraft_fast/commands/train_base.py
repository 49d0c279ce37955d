"""`pgraft-fast train-base`: the recipe of a task's shipped weights, or the base flow of a config."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pgraft_fast.errors import InputError
from pgraft_fast.finetune.checkpoint import run_lock
from pgraft_fast.finetune.signals import stop_on_signals
from pgraft_fast.ranks.environment import of_ranks
from pgraft_fast.runs.terminal import Terminal

TASKS = ("digits", "layouts", "molecules", "shapes")


def train_base(task: str, out: Path, seed: int, data: Path | None = None) -> dict[str, Any]:
    """Train into `out`; a config's task.weights can point there. data: in place of the shipped one, of layouts and
    molecules. task: also a config of `correct`, whose base flow is trained into its run. Raises InputError,
    StorageError, StoppedError.
    """
    if task.endswith(".toml"):
        if data is not None:
            raise InputError(f"--data {data}: the data of {task} is in the file")
        from pgraft_fast.commands.correct import correct_file

        return correct_file(Path(task), None, ("train-base",))
    if of_ranks():
        raise InputError(f"train-base {task}: one process makes it; start it without torchrun")
    train_all = _recipe(task)
    if data is not None:
        if task not in ("layouts", "molecules"):
            raise InputError(f"--data {data}: {task} has its own data; layouts and molecules can be trained on other")
        train_all = partial(train_all, data=str(data))
    with run_lock(out), stop_on_signals() as stop:
        return {"out": str(out), **train_all(out, seed, Terminal().line, stop.check)}


def _recipe(task: str) -> Callable[..., dict[str, Any]]:
    if task == "digits":
        from pgraft_fast.tasks.digits.recipe import train_all

        return train_all
    if task == "layouts":
        from pgraft_fast.tasks.layouts.recipe import train_all as train_layouts

        return train_layouts
    if task == "molecules":
        from pgraft_fast.tasks.molecules.recipe import train_all as train_molecules

        return train_molecules
    if task == "shapes":
        try:
            from pgraft_fast.tasks.shapes.recipe import train_all as train_shapes
        except ImportError as error:
            raise InputError(
                f"train-base shapes needs {error.name}, which is missing: "
                "pip install 'diffusers>=0.38' 'transformers>=5.3'"
            ) from error
        return train_shapes
    raise InputError(f"task {task!r} has no recipe; known: {', '.join(TASKS)}")
