"""Fine-tuning: objectives, rounds, budget, checkpoints."""

from pgraft_fast.finetune.budget import Budget
from pgraft_fast.finetune.candidates import Candidates
from pgraft_fast.finetune.kept import Kept
from pgraft_fast.finetune.learner import Learner
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.objectives import OBJECTIVES, pgraft_loss
from pgraft_fast.finetune.prompts import Prompts
from pgraft_fast.finetune.rounds import collect
from pgraft_fast.finetune.settings import (
    BudgetSettings,
    FinetuneSettings,
    SampleSettings,
    SelectSettings,
    TrainSettings,
)
from pgraft_fast.finetune.trainer import Trainer
from pgraft_fast.finetune.training import TrainReport, train

__all__ = [
    "OBJECTIVES",
    "Budget",
    "BudgetSettings",
    "Candidates",
    "FinetuneSettings",
    "Kept",
    "Learner",
    "Ledger",
    "Prompts",
    "SampleSettings",
    "SelectSettings",
    "TrainReport",
    "TrainSettings",
    "Trainer",
    "collect",
    "pgraft_loss",
    "train",
]
