"""A few optimiser steps for a probe, after which all is as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.finetune.borrowed import Borrowed
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.kept import Kept
from pgraft_fast.finetune.learner import Learner
from pgraft_fast.finetune.prompts import Prompts
from pgraft_fast.finetune.settings import TrainSettings
from pgraft_fast.finetune.training import TrainReport, train


@contextmanager
def training_trial(
    model: nn.Module,
    schedule: Schedule,
    settings: TrainSettings,
    x_0: Tensor,
    prompts: Prompts,
    *,
    steps: int,
    batch_size: int,
    parameterization: str,
    run: Execution,
    learner: Learner | None = None,
) -> Iterator[Callable[[], TrainReport]]:
    """What makes so many steps of such batches, on samples x_0 as if they were kept.

    learner: what is trained, given back as it was; default all weights of a copy of the model. run: how it is called.
    """
    training = settings.model_copy(update={"steps": steps, "epochs": None, "batch_size": batch_size})
    lent = Borrowed(Learner(model, training) if learner is None else learner, training, run)
    device = x_0.device
    ids = torch.arange(max(batch_size, x_0.shape[0]), device=device)
    numbers = ids.cpu() % len(prompts.text)
    prompts.prepare(numbers.unique())
    condition = None if prompts.condition is None else prompts.condition[numbers].to(device)
    kept = Kept(
        x_0[ids % x_0.shape[0]], ids, condition,
        float(schedule.t_of_share(training.cut)) if isinstance(training.cut, float) and training.cut > 0.0 else 0.0,
        torch.ones(ids.numel(), device=device) if training.objective == "contrast" else None,
    )  # fmt: skip
    try:
        yield partial(
            train, lent.learner, kept, schedule, parameterization=parameterization, seed=0, graphs=run.training_graphs
        )
    finally:
        lent.give_back()
