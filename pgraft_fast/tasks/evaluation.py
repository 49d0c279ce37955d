"""Samples at fixed seeds, before and after, and what is measured on them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pgraft_fast.diagnostics import diversity, mean_interval
from pgraft_fast.finetune import FinetuneSettings, Ledger
from pgraft_fast.finetune.drawing import draw_and_score
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.prompts import PromptBatch
from pgraft_fast.finetune.rounds import choose, copies_of
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.sampling import rollout
from pgraft_fast.tasks.base import Task

# Sample ids of evaluations lie far above those of any round.
EVALUATION_IDS = 1 << 40


@dataclass(frozen=True)
class Evaluation:
    """samples: (n, *shape), rewards: (n,), condition: (n, ...) as in the prompts, or None; on the CPU, groups of
    `candidates` one behind the other.
    """

    samples: Tensor
    rewards: Tensor
    condition: Tensor | None = None


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
    memory: BatchSize | None = None,
    check: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Draw at least `samples` samples in whole groups of candidates, held-out prompts in turn, and score them. ranks:
    among which the groups are dealt; all get the whole.
    """
    device = next(task.model.parameters()).device
    run = Execution("eager", device) if execution is None else execution
    sample, n = settings.sample, settings.sample.candidates
    prompt = prompts_of(task, samples, n)
    batch = PromptBatch.of(task.evaluation_prompts, prompt, torch.arange(prompt.numel()) + first_id)
    draw = partial(
        rollout, run.of(task.model), task.schedule, shape=task.shape, steps=sample.steps, solver=sample.solver,
        eta=sample.eta, parameterization=task.parameterization, seed=settings.seed,
        tuned=None if tuned is None else run.of(tuned), cut=cut, device=device, graphs=run.graphs,
    )  # fmt: skip
    parts, rewards = draw_and_score(
        draw, reward, batch, sample, memory, ledger, check, phases=("evaluate", "evaluate"), counted=False,
        ranks=ranks, unit=n,
    )  # fmt: skip
    condition = None if batch.condition is None else batch.condition.cpu()
    # A rank may have had no group.
    own = torch.cat([part.x_0.cpu() for part in parts]) if parts else torch.empty(0, *task.shape)
    return Evaluation(ranks.rows(own, ranks.counts(prompt.numel(), n)), rewards.cpu(), condition)


def features_of(task: Task, evaluation: Evaluation, rows: Tensor | None = None) -> Tensor:
    """(n, d) features of the samples, or of some rows of them."""
    return task.features(*_chosen(evaluation, rows))


def pictures_of(task: Task, evaluation: Evaluation, rows: Tensor | None = None) -> np.ndarray:
    """(n, H, W) or (n, H, W, 3) uint8 of the samples, or of some rows of them."""
    return task.pictures(*_chosen(evaluation, rows))


def _chosen(evaluation: Evaluation, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if rows is None:
        return evaluation.samples, evaluation.condition
    return evaluation.samples[rows], None if evaluation.condition is None else evaluation.condition[rows]


def prompts_of(task: Task, samples: int, candidates: int) -> Tensor:
    """(n,) numbers of the prompts of an evaluation."""
    groups = whole_groups(samples, candidates) // candidates
    return (torch.arange(groups) % len(task.evaluation_prompts.text)).repeat_interleave(candidates)


def whole_groups(samples: int, candidates: int) -> int:
    """So many samples, rounded up to whole groups."""
    return -(-samples // candidates) * candidates


def accepted_of(task: Task, evaluation: Evaluation, settings: FinetuneSettings) -> Tensor:
    """(n,) bool: what the run's rule accepts among these samples, a draw from the law that it asks for."""
    groups = evaluation.rewards.view(-1, settings.sample.candidates)
    sample_id = torch.arange(groups.numel()) + EVALUATION_IDS
    numbers = copies_of(settings, task.evaluation_prompts, evaluation.samples, evaluation.condition)
    return choose(settings, groups, sample_id, numbers).mask.flatten()


def quality_of(task: Task, evaluation: Evaluation, accepted: Tensor | None, candidates: int) -> dict[str, Any]:
    """`Task.quality_of`; where the task has measures "measures", where prompts have categories "categories" and
    "diversity".
    """
    features = features_of(task, evaluation)
    quality: dict[str, Any] = task.quality_of(features, evaluation.rewards, accepted)
    if task.measures is not None:
        quality["measures"] = task.measures(evaluation.samples, evaluation.condition)
    if task.categories:
        # Of the samples of one prompt, mean over prompts.
        groups = features.view(-1, candidates, features.shape[1])
        quality |= {"categories": by_category(task, evaluation, candidates), "diversity": diversity(groups)}
    return quality


def by_category(task: Task, evaluation: Evaluation, candidates: int) -> dict[str, dict[str, Any]]:
    """{category: {"reward", "reward_ci", "samples"}}; the interval is over the means of
    prompts, None for one prompt."""
    if not task.categories:
        return {}
    prompt = prompts_of(task, evaluation.rewards.numel(), candidates)[::candidates]
    of_prompt = evaluation.rewards.view(-1, candidates).nanmean(dim=1)
    names = [task.categories[int(number)] for number in prompt]
    summaries = {}
    for name in dict.fromkeys(names):
        rows = torch.tensor([category == name for category in names])
        reward = mean_interval(of_prompt[rows])
        interval = [reward.low, reward.high] if int(rows.sum()) > 1 else None
        summaries[name] = {"reward": reward.mean, "reward_ci": interval, "samples": int(rows.sum()) * candidates}
    return summaries
