"""`pgraft-fast sample`: pictures from a finished run, or from a task's reference model."""

import copy
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.commands.config import RunConfig, checked
from pgraft_fast.commands.finetune import read_run
from pgraft_fast.commands.pipeline_config import PipelineConfig
from pgraft_fast.errors import CheckpointError, InputError, told_as_damage
from pgraft_fast.files import write_file
from pgraft_fast.finetune.checkpoint import tensor_bytes, tensors_from_bytes
from pgraft_fast.report import picture_grid_png
from pgraft_fast.runs.subject import MODEL
from pgraft_fast.runs.terminal import Terminal
from pgraft_fast.sampling import Model, guided, rollout
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.known import NAMES, load_task


def sample(
    source: str,
    out: Path,
    *,
    n: int,
    seed: int,
    prompt: str | None,
    steps: int | None,
    solver: str | None,
    guidance: float | None,
    base: bool,
) -> dict[str, Any]:
    """Draw n samples; write a picture (.png) or tensors (.safetensors). source: a run folder or a task's name."""
    if out.suffix not in (".png", ".safetensors"):
        raise InputError(f"--out {out}: the name must end in .png or .safetensors")
    tuned: Model | None = None
    if source in NAMES:
        config = checked(RunConfig, {"run": "-", "task": {"name": source}}, source)
        task = load_task(config.task)
    else:
        run, _, run_config = read_run(source)
        if isinstance(run_config, PipelineConfig):
            from pgraft_fast.commands.sample_pipeline import sample_pipeline

            if solver is not None:
                raise InputError(f"--solver {solver}: pictures of {source} are drawn by its pipeline's own scheduler")
            return sample_pipeline(
                run, run_config, out, n=n, seed=seed, prompt=prompt, steps=steps, guidance=guidance, base=base,
                log=Terminal().line,
            )  # fmt: skip
        config = run_config
        task = load_task(config.task)
        if not base:
            tuned = _tuned(run, task)
    condition = _condition(task, prompt, n)
    model: Model = task.model
    if guidance not in (None, 1.0):
        if task.prompts.null is None:
            raise InputError(f"--guidance {guidance}: the model of {source} takes no prompt")
        model = guided(model, guidance, task.prompts.null)
        tuned = None if tuned is None else guided(tuned, guidance, task.prompts.null)
    drawn = rollout(
        model,
        task.schedule,
        shape=task.shape,
        n=n,
        steps=config.sample.steps if steps is None else steps,
        solver=config.sample.solver if solver is None else solver,
        # Of the run's solver; another one has its own.
        eta=config.sample.eta if solver in (None, config.sample.solver) else None,
        parameterization=task.parameterization,
        seed=seed,
        condition=condition,
        tuned=tuned,
        cut=None if tuned is None else config.cut,
    )
    if out.suffix == ".png":
        data = picture_grid_png(task.pictures(drawn.x_0, condition))
    else:
        data = tensor_bytes({"samples": drawn.x_0, "sample_id": drawn.sample_id})
    write_file(out, data)
    return {"out": str(out), "n": n, "seed": seed, "tuned": tuned is not None, "model_calls": drawn.model_calls}


def _condition(task: Task, prompt: str | None, n: int) -> torch.Tensor | None:
    """All prompts in turn, or the one asked for."""
    if prompt is not None and task.condition_of is not None:
        return task.condition_of([prompt] * n)
    if prompt is None:
        rows = torch.arange(n) % len(task.prompts.text)
    elif prompt in task.prompts.text:
        rows = torch.full((n,), list(task.prompts.text).index(prompt))
    else:
        raise InputError(f"--prompt {prompt!r} is unknown; known: {', '.join(task.prompts.text)}")
    return None if task.prompts.condition is None else task.prompts.condition[rows]


def _tuned(run: Path, task: Task) -> torch.nn.Module:
    path = run / MODEL
    try:
        tensors = tensors_from_bytes(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(f"{path}: tuned weights cannot be read ({error.strerror})") from error
    tuned = copy.deepcopy(task.model)
    with told_as_damage(path):
        tuned.load_state_dict(tensors)
    return tuned.eval()
