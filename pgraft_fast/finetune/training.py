"""The second half of a round: optimiser steps on the kept rows."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgraft_fast.diffusion import NoiseKey, Schedule, Stream, uniform
from pgraft_fast.errors import PgraftError
from pgraft_fast.finetune.budget import CALLS_OF_A_TRAINED_SAMPLE
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.objectives import pgraft_loss
from pgraft_fast.finetune.rounds import Kept
from pgraft_fast.finetune.settings import TrainSettings
from pgraft_fast.sampling import Model

_MOST_REJECTED_IN_A_ROW = 3


class Learner:
    """A model in training: raw weights, averaged weights (`ema`, the result) and the optimiser.

    run: what is called in training: the model, or a compiled one with the same weights.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self.model = copy.deepcopy(model).requires_grad_(True)
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.settings = settings
        # One pass over all weights where torch has it: a third of the time of the loop over tensors.
        fused = next(model.parameters()).device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
        )
        self.steps_done = 0
        self.run: Model = self.model

    def update(self, loss: Tensor) -> tuple[bool, Tensor]:
        """One optimiser step. A gradient that is not finite changes nothing and returns False."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        if not torch.isfinite(norm):
            return False, norm
        self.optimizer.step()
        with torch.no_grad():
            averages: list[Tensor] = list(self.ema.parameters())
            values: list[Tensor] = list(self.model.parameters())
            torch._foreach_lerp_(averages, values, 1.0 - self.settings.ema)
        return True, norm

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that `load` needs to go on."""
        moments = {
            f"{index}.{name}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        return {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "optimizer": moments}

    def load(self, tensors: dict[str, dict[str, Tensor]], steps_done: int) -> None:
        """Inverse of `tensors`."""
        self.model.load_state_dict(tensors["model"])
        self.ema.load_state_dict(tensors["ema"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.get("optimizer", {}).items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.steps_done = steps_done


@dataclass(frozen=True)
class TrainReport:
    """loss: mean of the last tenth of the steps. steps: done. rejected: steps whose gradient was not finite."""

    loss: float
    steps: int
    rejected: int


def train(
    learner: Learner,
    kept: Kept,
    schedule: Schedule,
    *,
    parameterization: str,
    seed: int,
    ledger: Ledger | None = None,
    check: Callable[[], None] = lambda: None,
    enough: Callable[[], bool] = lambda: False,
) -> TrainReport:
    """Regress on the kept rows, and on nothing else, for `settings.steps` steps or until enough() is true.

    Rows come in a drawn order, all of them once before any comes again. check() may raise. Raises PgraftError after
    three steps in a row whose gradient was not finite.
    """
    ledger = Ledger() if ledger is None else ledger
    settings = learner.settings
    learner.model.train()
    losses: list[Tensor] = []
    rejected = in_a_row = 0
    with ledger.phase("train"):
        for rows, epoch in _batches(kept.sample_id, seed, settings.batch_size, settings.steps):
            if losses and enough():
                break
            loss = _loss(learner, kept, rows, epoch, schedule, parameterization, seed)
            done, _ = learner.update(loss)
            learner.steps_done += 1
            losses.append(loss.detach())
            in_a_row = 0 if done else in_a_row + 1
            rejected += not done
            if in_a_row == _MOST_REJECTED_IN_A_ROW:
                raise PgraftError(
                    f"training: the gradient was not finite {in_a_row} times in a row; lower train.learning_rate"
                )
            ledger.add_calls(CALLS_OF_A_TRAINED_SAMPLE * rows.numel())
            check()
    tail = torch.stack(losses[-max(1, len(losses) // 10) :])
    return TrainReport(float(tail.mean()), len(losses), rejected)


def _loss(
    learner: Learner,
    kept: Kept,
    rows: Tensor,
    epoch: Tensor,
    schedule: Schedule,
    parameterization: str,
    seed: int,
) -> Tensor:
    x = kept.x[rows]
    # One draw a step, spread evenly over the batch: every batch sees every noise level.
    offset = uniform(seed, torch.tensor([learner.steps_done], device=x.device), 0, Stream.TRAIN_TIME)
    share = (offset + torch.arange(rows.numel(), device=x.device) / rows.numel()) % 1.0
    return pgraft_loss(
        learner.run,
        schedule,
        x,
        t_cut=kept.t_cut,
        objective=learner.settings.objective,
        parameterization=parameterization,
        condition=None if kept.condition is None else kept.condition[rows],
        t=1.0 - share * (1.0 - kept.t_cut),
        noise=NoiseKey(seed, kept.sample_id[rows], epoch, Stream.TRAIN_NOISE),
    )


def _batches(sample_id: Tensor, seed: int, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, epoch), each (size,) int64, of an endless reading of the rows in drawn orders."""
    rows, epochs = sample_id.new_empty(0), sample_id.new_empty(0)
    epoch = 0
    for _ in range(steps):
        while rows.numel() < size:
            order = torch.argsort(uniform(seed, sample_id, epoch, Stream.TRAIN_ORDER), stable=True)
            rows = torch.cat((rows, order))
            epochs = torch.cat((epochs, torch.full_like(order, epoch)))
            epoch += 1
        yield rows[:size], epochs[:size]
        rows, epochs = rows[size:], epochs[size:]
