"""What the rounds of a run work with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.finetune.cost import evaluations_of
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.learner import Learner
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.prompts import Prompts
from pgraft_fast.finetune.settings import FinetuneSettings
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.sampling import calls_of


@dataclass(frozen=True)
class Work:
    """What a round works with. sampling, training: rows at once. log: of lines for people. ranks: among which."""

    model: nn.Module
    schedule: Schedule
    reward: Callable[..., object]
    prompts: Prompts
    settings: FinetuneSettings
    shape: Sequence[int]
    parameterization: str
    learner: Learner
    execution: Execution
    ledger: Ledger
    sampling: BatchSize
    training: BatchSize
    device: torch.device
    log: Callable[[str], None]
    ranks: Ranks = ALONE

    def calls(self) -> int:
        """Model calls of a round, at most."""
        evaluations = evaluations_of(self.schedule, self.settings, self.parameterization)
        return self.settings.calls(evaluations, calls_of(self.model))
