"""DiffusionNFT, a baseline of the field: rewards contrasted on the forward process at every noise level, without a cut.

A sample x_0 of the old policy, noised to x_t, is regressed on by two implicit policies around the old one: by the
positive one as far as the sample is good, by the negative one as far as it is bad. Zheng et al. 2025, arXiv 2509.16117.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule, Stream, convert, normal
from pgraft_fast.errors import InputError
from pgraft_fast.finetune.gradients import Gradients
from pgraft_fast.finetune.kernel_choice import training_kernels
from pgraft_fast.finetune.learner import Learner, OptimizerSteps
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.nft_settings import NftSettings
from pgraft_fast.finetune.objectives import answer_above, rows_an_element, within
from pgraft_fast.finetune.sample_steps import sample_step_batches
from pgraft_fast.finetune.training import TrainReport
from pgraft_fast.ops.checks import over_samples
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.sampling.rollout import rows_of
from pgraft_fast.threads import team_of

_SMALLEST_SPREAD = 1e-4
_SMALLEST_ERROR = 1e-5


def nft_advantages(rewards: Tensor) -> Tensor:
    """(r - mean of the group) / (standard deviation of the round + 1e-4), (P, N) float32; 0 where r is not finite."""
    values, valid = rewards.to(torch.float64), rewards.isfinite()
    finite = values[valid]
    if finite.numel() == 0 or bool(finite.min() == finite.max()):
        return torch.zeros(rewards.shape, device=rewards.device)
    mean = values.where(valid, torch.nan).nanmean(dim=1, keepdim=True)
    scaled = (values - mean) / (finite.std(correction=0) + _SMALLEST_SPREAD)
    return torch.where(valid, scaled, 0.0).to(torch.float32)


def nft_loss(out: Tensor, old: Tensor, x_0: Tensor, to_x_0: Callable[[Tensor], Tensor], advantage: Tensor,
             settings: NftSettings, elements: Tensor | None = None) -> Tensor:  # fmt: skip
    """(m,) losses of rows, with r = 1/2 + advantage / (2 clip) in [0, 1]:

        clip (r / beta E(beta out + (1 - beta) old) + (1 - r) / beta E((1 + beta) old - beta out)),
        E(a) = mean (to_x_0(a) - x_0)^2 / mean |to_x_0(a) - x_0|

    E's denominator, at least 1e-5, has no gradient. out, old, x_0: (m, ...). advantage: (m,). to_x_0: an answer as
    prediction of x_0. elements: see `pgraft_loss`. Zheng et al. 2025, arXiv 2509.16117, eq. 5, 8 and 9.
    """
    clip, beta = settings.advantage_clip, settings.beta
    r = 0.5 + 0.5 * advantage.clamp(-clip, clip) / clip

    def error(answer: Tensor) -> Tensor:
        rest = to_x_0(answer) - x_0
        # Rows that are no elements are in both means alike, as 0.
        rest = (rest if elements is None else within(rest, elements)).flatten(1)
        return rest.square().mean(dim=1) / rest.detach().abs().mean(dim=1).clamp(min=_SMALLEST_ERROR)

    positive, negative = error(beta * out + (1.0 - beta) * old), error((1.0 + beta) * old - beta * out)
    return clip / beta * (r * positive + (1.0 - r) * negative)


def train_nft(
    learner: Learner, schedule: Schedule, x_0: Tensor, sample_id: Tensor, advantage: Tensor, condition: Tensor | None,
    times: Tensor, settings: NftSettings, *, parameterization: str, seed: int, memory: BatchSize | None = None,
    ledger: Ledger | None = None, check: Callable[[], None] = lambda: None, enough: Callable[[], bool] = lambda: False,
    elements: Tensor | None = None, ranks: Ranks = ALONE, ordered: bool = False,
) -> TrainReport:  # fmt: skip
    """Train on the samples of a round until all are used or enough() is true, for one optimiser step at least; then
    the old policy follows.

    x_0: (n, ...) of the old policy, which is `learner.averaged`. sample_id, advantage: (n,). times: (S,) of the steps
    at which the network was called. memory: rows at once. ranks, ordered: see `Gradients`. elements: (n, N) bool, see
    `pgraft_loss`. Nothing is done where all advantages are 0. Raises
    InputError; PgraftError after three steps in a row whose gradient was not finite.
    """
    n = sample_id.numel()
    if advantage.shape != (n,) or not bool(advantage.isfinite().all()):
        raise InputError(f"advantage has shape {tuple(advantage.shape)}: ({n},) finite numbers are needed")
    condition = rows_of(condition, sample_id)
    ledger = Ledger() if ledger is None else ledger
    if not bool((advantage != 0).any()):
        return TrainReport(0.0, 0, 0)
    make = _Losses(learner, schedule, x_0, sample_id, advantage.to(x_0), condition, times, settings, parameterization,
                   seed, elements)  # fmt: skip
    learner.model.train()
    losses: list[Tensor] = []
    optimizer = OptimizerSteps(learner, follow=False)
    size = min(n, settings.batch_size or n)
    memory = BatchSize(size, "training") if memory is None else memory
    sums = Gradients(learner, memory, check, enough, ranks, ordered)
    team = team_of(learner.run, memory.value, x_0.shape[1:], x_0.device)
    steps = torch.arange(times.numel(), device=x_0.device)
    with ledger.phase("train"), team, training_kernels(x_0.device, ordered):
        for rows, step in sample_step_batches(
            sample_id, steps, count=settings.steps_of(times.numel()), parts=-(-n // size), epochs=settings.inner_epochs,
            seed=seed, most_steps=times.numel(),
        ):  # fmt: skip
            if sums.enough:
                break
            losses.append(optimizer.step(partial(sums.of, rows.numel(), partial(make.share, rows, step))))
            ledger.add_calls(settings.calls_of_a_row * rows.numel())
        learner.follow(min(settings.decay_rate * learner.steps_done, settings.decay_limit))
    return TrainReport(float(torch.stack(losses[-max(1, len(losses) // 10) :]).mean()), len(losses), optimizer.rejected)


@dataclass(frozen=True)
class _Losses:
    learner: Learner
    schedule: Schedule
    x_0: Tensor
    sample_id: Tensor
    advantage: Tensor
    condition: Tensor | None
    times: Tensor
    settings: NftSettings
    parameterization: str
    seed: int
    elements: Tensor | None

    def share(self, rows: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        """What some rows add to the mean loss of a batch."""
        return self.rows(rows[low:high], step[low:high]).sum() / rows.numel()

    def rows(self, rows: Tensor, step: Tensor) -> Tensor:
        """(m,) losses of pairs (m,)."""
        learner, settings, x_0 = self.learner, self.settings, self.x_0[rows]
        # A new draw for each optimiser step, sample and step of it.
        number = learner.steps_done * self.times.numel() + step
        noise = normal(self.seed, self.sample_id[rows], number, x_0.shape[1:], Stream.TRAIN_NOISE, x_0.dtype)
        t = self.times.to(x_0.device)[step]
        alpha, sigma = (over_samples(value.to(x_0.dtype), x_0) for value in self.schedule.alpha_sigma(t))
        x_t, times = alpha * x_0 + sigma * noise, t.to(x_0.dtype)
        condition = None if self.condition is None else self.condition[rows]
        with torch.no_grad():
            old = answer_above(learner.averaged, x_t, times, condition)
            reference = answer_above(learner.frozen, x_t, times, condition) if settings.kl > 0 else old
        out = answer_above(learner.run, x_t, times, condition)

        def to_x_0(answer: Tensor) -> Tensor:
            return convert(answer, x_t, self.schedule, t, self.parameterization, "x_0")

        elements = None if self.elements is None else self.elements[rows]
        loss = nft_loss(out, old, x_0, to_x_0, self.advantage[rows], settings, elements)
        change = out - reference
        if elements is None:
            return loss + settings.kl * change.square().flatten(1).mean(dim=1)
        return loss + settings.kl * within(change, elements).square().flatten(1).mean(dim=1) * rows_an_element(elements)
