"""The second half of a round: optimiser steps on the kept rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.diffusion import NoiseKey, Schedule, Stream, uniform
from pgraft_fast.finetune.captured_steps import CapturedSteps
from pgraft_fast.finetune.gradients import Gradients
from pgraft_fast.finetune.kept import Kept
from pgraft_fast.finetune.kernel_choice import training_kernels
from pgraft_fast.finetune.learner import Learner, OptimizerSteps
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.objectives import pgraft_loss
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.sampling.graphs import GraphCache, weights_key
from pgraft_fast.threads import team_of


@dataclass(frozen=True)
class TrainReport:
    """loss: mean of the last tenth of the steps. steps: done. rejected: steps whose gradient was not finite.

    clipped, kl: see `train_ddpo`. change, excess: of contrast, means of the last tenth, see `divergence.divergence`.
    """

    loss: float
    steps: int
    rejected: int
    clipped: float | None = None
    kl: float | None = None
    change: float | None = None
    excess: float | None = None


def train(
    learner: Learner,
    kept: Kept,
    schedule: Schedule,
    *,
    parameterization: str,
    seed: int,
    null_condition: Tensor | None = None,
    memory: BatchSize | None = None,
    ledger: Ledger | None = None,
    check: Callable[[], None] = lambda: None,
    enough: Callable[[], bool] = lambda: False,
    graphs: GraphCache | None = None,
    ranks: Ranks = ALONE,
    ordered: bool = False,
) -> TrainReport:
    """Regress on the kept rows, and on nothing else, for the settings' steps or until enough() is true.

    No row, no step: then the report's loss is 0. Rows come in a drawn order, all of them once before any comes again.
    null_condition: one row that takes the place of a condition with probability `settings.null_prompt`. memory: rows at
    once; their gradients add up to those of the batch. check() may raise. graphs: steps are captured where they can be,
    see `CapturedSteps`. ranks, ordered: see `Gradients`; all ranks are given all rows. Raises PgraftError after three
    steps in a row whose gradient was not finite.
    """
    ledger = Ledger() if ledger is None else ledger
    settings = learner.settings
    memory = BatchSize(settings.micro_batch or settings.batch_size) if memory is None else memory
    make = _Losses(learner, kept, schedule, parameterization, seed, null_condition)
    alone = ranks.size == 1
    captured = None
    if graphs is not None and alone and graphs.captures(kept.x.device):
        captured = CapturedSteps(learner, graphs)
    fixed = None if captured is None else make.fixed
    learner.model.train()
    losses: list[Tensor] = []
    optimizer, sums = OptimizerSteps(learner), Gradients(learner, memory, check, enough, ranks, ordered)
    steps, values = settings.steps_of(kept.rows) if kept.rows else 0, 1 if kept.advantage is None else 4
    team = team_of(learner.run, min(memory.value, settings.batch_size), kept.x.shape[1:], kept.x.device)
    with ledger.phase("train"), team, training_kernels(kept.x.device, ordered):
        for rows, key, epoch in _batches(kept, seed, settings.batch_size, steps):
            if sums.enough:
                break
            batch, whole = make.batch(rows, key, epoch), memory.value >= rows.numel()
            step = partial(captured.step, fixed, make.of, make.inputs(batch)) if captured and whole else None
            losses.append(
                optimizer.step(
                    partial(sums.of, rows.numel(), partial(make.share, batch), values),
                    None if step is None else partial(sums.instead, step),
                )
            )
            ledger.add_calls(settings.calls_of_a_row * rows.numel())
    if not losses:
        return TrainReport(0.0, 0, 0)
    loss, *parts = torch.stack(losses[-max(1, len(losses) // 10) :], dim=1).mean(dim=1).tolist()
    report = TrainReport(loss, len(losses), optimizer.rejected)
    if not parts or not parts[-1]:
        return report
    unchanged, change, spread = parts
    return replace(report, change=change / spread, excess=(loss - unchanged) / spread)


@dataclass(frozen=True)
class _Batch:
    """rows, key, epoch: (B,) int64, key and epoch those of the noise. t: (B,) times."""

    rows: Tensor
    key: Tensor
    epoch: Tensor
    t: Tensor

    def part(self, low: int, high: int) -> "_Batch":
        return _Batch(self.rows[low:high], self.key[low:high], self.epoch[low:high], self.t[low:high])


@dataclass(frozen=True)
class _Losses:
    learner: Learner
    kept: Kept
    schedule: Schedule
    parameterization: str
    seed: int
    null_condition: Tensor | None

    def batch(self, rows: Tensor, key: Tensor, epoch: Tensor) -> _Batch:
        # One draw a step, spread evenly over the batch: every batch sees every noise level. Rows with the same noise
        # have the same level, too.
        device = self.kept.x.device
        offset = uniform(self.seed, torch.tensor([self.learner.steps_done], device=device), 0, Stream.TRAIN_TIME)
        another = (key[1:] != key[:-1]) | (epoch[1:] != epoch[:-1])
        number = torch.cat((another.new_zeros(1), another)).cumsum(0)
        share = (offset + number / (number[-1] + 1)) % 1.0
        begin, power = self.schedule.t_begin, 1.0 / self.learner.settings.low_noise
        return _Batch(rows, key, epoch, begin - share**power * (begin - self.kept.t_cut))

    def share(self, batch: _Batch, low: int, high: int) -> Tensor:
        """What some rows add to the mean loss of a batch."""
        return self.of(self.inputs(batch.part(low, high))) * ((high - low) / batch.rows.numel())

    def inputs(self, batch: _Batch) -> list[Tensor]:
        """What changes from step to step, as `of` takes it."""
        kept, condition = self.kept, self._condition(batch)
        more = [] if condition is None else [condition]
        more += [] if kept.elements is None else [kept.elements[batch.rows]]
        more += [] if kept.advantage is None else [kept.advantage[batch.rows]]
        return [kept.x[batch.rows], batch.t, batch.key, batch.epoch, *more]

    def of(self, inputs: list[Tensor]) -> Tensor:
        """(1,) the loss, of contrast (4,) with its parts; from here on nothing is read back to the host."""
        kept, (x, t, key, epoch, *rest) = self.kept, inputs
        advantage = None if kept.advantage is None else rest.pop()
        elements = None if kept.elements is None else rest.pop()
        return pgraft_loss(
            self.learner.run,
            self.schedule,
            x,
            t_cut=kept.t_cut,
            objective=self.learner.settings.objective,
            parameterization=self.parameterization,
            condition=rest[0] if rest else None,
            t=t,
            noise=NoiseKey(self.seed, key, epoch, Stream.TRAIN_NOISE),
            frozen=None if advantage is None else self.learner.frozen,
            advantage=advantage,
            elements=elements,
            reduction="mean" if advantage is None else "parts",
        ).view(-1)

    @property
    def fixed(self) -> tuple[Any, ...]:
        """What `of` depends on beside its inputs."""
        learner, kept = self.learner, self.kept
        nets = [learner.run] if kept.advantage is None else [learner.run, learner.frozen]
        return (
            self.seed, kept.t_cut, learner.settings.objective, self.parameterization, id(self.schedule),
            kept.advantage is None, kept.elements is None, *(weights_key(net) for net in nets),
        )  # fmt: skip

    def _condition(self, batch: _Batch) -> Tensor | None:
        if self.kept.condition is None:
            return None
        condition, share = self.kept.condition[batch.rows], self.learner.settings.null_prompt
        if share == 0.0 or self.null_condition is None:
            return condition
        dropped = uniform(self.seed, batch.key, batch.epoch, Stream.PROMPT_DROPOUT) < share
        null = self.null_condition.to(condition)
        return torch.where(dropped.view(-1, *[1] * (condition.ndim - 1)), null, condition)


def _batches(kept: Kept, seed: int, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(rows, key, epoch), each (size,) int64, of an endless reading of the rows in drawn orders."""
    read = kept.sample_id.new_empty(3, 0)
    epoch = 0
    for _ in range(steps):
        while read.shape[1] < size:
            rows, key = kept.order(seed, epoch)
            read = torch.cat((read, torch.stack((rows, key, torch.full_like(rows, epoch)))), dim=1)
            epoch += 1
        rows, key, epochs = read[:, :size]
        yield rows, key, epochs
        read = read[:, size:]
