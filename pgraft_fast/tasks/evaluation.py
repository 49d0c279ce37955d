"""Samples at fixed seeds, before and after, and what is measured on them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgraft_fast.finetune import FinetuneSettings, Ledger
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.rounds import choose
from pgraft_fast.rewards import score
from pgraft_fast.sampling import rollout
from pgraft_fast.tasks.base import Task

# Sample ids of evaluations lie far above those of any round.
EVALUATION_IDS = 1 << 40


@dataclass(frozen=True)
class Evaluation:
    """samples: (n, *shape), rewards: (n,), groups of `candidates` one behind the other."""

    samples: Tensor
    rewards: Tensor


def evaluate(
    task: Task,
    reward: Callable[..., object],
    settings: FinetuneSettings,
    samples: int,
    *,
    tuned: nn.Module | None = None,
    cut: float | None = None,
    first_id: int = EVALUATION_IDS,
    ledger: Ledger,
    execution: Execution | None = None,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Draw at least `samples` samples in whole groups of candidates, prompts in turn, and score them."""
    run = Execution("eager", next(task.model.parameters()).device) if execution is None else execution
    n = settings.sample.candidates
    groups = -(-samples // n)
    prompt = (torch.arange(groups) % len(task.prompts.text)).repeat_interleave(n)
    sample_id = torch.arange(groups * n) + first_id
    with ledger.phase("evaluate"):
        drawn = rollout(
            run.of(task.model),
            task.schedule,
            shape=task.shape,
            steps=settings.sample.steps,
            solver=settings.sample.solver,
            eta=settings.sample.eta,
            parameterization=task.parameterization,
            seed=settings.seed,
            sample_ids=sample_id,
            tuned=None if tuned is None else run.of(tuned),
            cut=cut,
            condition=None if task.prompts.condition is None else task.prompts.condition[prompt],
            batch_size=settings.sample.batch_size,
            on_batch=lambda calls: check(),
        )
        text = [task.prompts.text[int(p)] for p in prompt]
        rewards = score(reward, drawn.x_0, text, sample_id, settings.sample.batch_size, check)
    return Evaluation(drawn.x_0, rewards)


def accepted_of(evaluation: Evaluation, settings: FinetuneSettings) -> Tensor:
    """(n,) bool: what the run's rule accepts among these samples, a draw from the law that it asks for."""
    groups = evaluation.rewards.view(-1, settings.sample.candidates)
    sample_id = torch.arange(groups.numel()) + EVALUATION_IDS
    return choose(settings, groups, evaluation.samples, sample_id).mask.flatten()
