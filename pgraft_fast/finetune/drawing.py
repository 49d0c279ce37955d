"""Samples drawn in batches, and scored."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.prompts import PromptBatch
from pgraft_fast.finetune.scoring import Scoring
from pgraft_fast.finetune.settings import SampleSettings
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.rewards.protocol import finished
from pgraft_fast.sampling import Rollout
from pgraft_fast.sampling.recorded import Recorded

Drawn = TypeVar("Drawn", Rollout, Recorded)


def draw_and_score(
    draw: Callable[..., Drawn],
    reward: Callable[..., object],
    prompt_batch: PromptBatch,
    sample: SampleSettings,
    memory: BatchSize | None,
    ledger: Ledger,
    check: Callable[[], None],
    phases: tuple[str, str] = ("sample", "score"),
    counted: bool = True,
    ranks: Ranks = ALONE,
    unit: int = 1,
) -> tuple[list[Drawn], Tensor]:
    """Batches of draw(sample_ids=, condition=, batch_size=, on_batch=) and the rewards (n,) of all samples.

    phases: of the ledger. counted: whether the model calls are. ranks: each draws and scores a share, whole units of so
    many samples; the batches are those of this rank, the rewards and the calls those of all.
    """
    memory = BatchSize(sample.batch_size, "sampling") if memory is None else memory
    parts: list[Drawn] = []
    rewards, n, spent = torch.empty(0), prompt_batch.sample_id.numel(), 0
    scoring = Scoring(reward, sample.batch_size, check, sample.overlap)

    def count(calls: int) -> None:
        nonlocal spent
        spent += calls if counted else 0
        ledger.add_calls(calls if counted else 0)
        check()
        ranks.check()
        scoring.raise_early()

    def batch(low: int, most: int, size: int) -> Drawn:
        rows = slice(low, min(low + size, most))
        condition = None if prompt_batch.condition is None else prompt_batch.condition[rows]
        ids = prompt_batch.sample_id[rows]
        return draw(sample_ids=ids, condition=condition, batch_size=max(1, ids.numel()), on_batch=count)

    with ranks.together(), ranks.unequal(), scoring:
        low, most = ranks.part(n, unit)
        while low < most:
            with ledger.phase(phases[0]):
                parts.append(memory.run(partial(batch, low, most)))
            high = low + parts[-1].sample_id.numel()
            with ledger.phase(phases[1]):
                scoring.add(parts[-1].x_0, prompt_batch.text[low:high], prompt_batch.sample_id[low:high])
            low = high
        if parts:
            with ledger.phase(phases[1]):
                rewards = scoring.rewards()
    ledger.add_calls(sum(ranks.gather(spent)) - spent)
    rewards = ranks.rows(rewards, ranks.counts(n, unit))
    return parts, finished(reward, rewards, prompt_batch.sample_id)
