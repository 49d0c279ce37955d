"""A short training at cut 0: from which noise level on it helps, and what it gains."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.diagnostics.cut import LearnedLevels, learned_levels
from pgraft_fast.diffusion import NoiseKey, Stream, uniform
from pgraft_fast.finetune.borrowed import Borrowed
from pgraft_fast.finetune.branches import Trials
from pgraft_fast.finetune.kept import Kept
from pgraft_fast.finetune.objectives import pgraft_loss
from pgraft_fast.finetune.settings import FinetuneSettings
from pgraft_fast.finetune.training import train

_LEVELS = 10
# Of the groups that were kept of.
_HELD_OUT, _LEAST_HELD_OUT, _LEAST_GROUPS = 0.1, 2, 8
_LEAST_STEPS, _LEAST_SAMPLES, _MOST_SAMPLES = 8, 16, 256
# Of the pilot's model calls: its samples, its loss on held-out rows; its training takes the rest.
_FOR_SAMPLES, _FOR_LOSSES = 0.45, 0.15


@dataclass(frozen=True)
class Pilot:
    """levels: see `learned_levels`. steps: of its training. longer: how many times as far a round of the run goes.
    gain, error: of its samples over the candidates at the same noise.

    The gain is that of averaged weights in which the first ones have no part: over so few steps they would have nearly
    all, and hide it.
    """

    levels: LearnedLevels
    steps: int
    longer: float
    gain: float
    error: float


def run_pilot(trials: Trials, allowed: float, run: FinetuneSettings) -> Pilot | None:
    """Train on the rows of nine tenths of the groups, for as long as `allowed` model calls let; the learner is left as
    it was. run: settings of the run that is planned. None where there is no room, or too little was accepted to hold
    some out.
    """
    work, training = trials.work, trials.work.settings.train
    kept = trials.candidates.kept_for(0.0, training)
    groups, group = (kept.sample_id // work.settings.sample.candidates).unique(return_inverse=True)
    if groups.numel() < _LEAST_GROUPS:
        return None
    order = torch.argsort(uniform(work.settings.seed, groups, 1, Stream.PILOT), stable=True)
    # Of rows that are contrasted with each other all or none.
    held = torch.isin(group, order[: max(_LEAST_HELD_OUT, round(_HELD_OUT * groups.numel()))])
    out, rest = kept.where(held), kept.where(~held)
    # Of a round of the run, which keeps more rows where it draws more prompts.
    whole = training.steps_of(kept.rows * run.sample.prompts // work.settings.sample.prompts) if kept.rows else 0
    left = (1.0 - _FOR_SAMPLES - _FOR_LOSSES) * allowed
    steps = min(whole, int(left / (training.calls_of_a_row * training.batch_size)))
    rows = min(out.sample_id.numel(), int(_FOR_LOSSES * allowed / (_LEVELS * _calls_of_a_loss(trials))))
    samples = min(_MOST_SAMPLES, int(_FOR_SAMPLES * allowed / trials.trajectory_calls()))
    if rows < 2 or rest.rows < 2 or samples < _LEAST_SAMPLES or steps < min(whole, _LEAST_STEPS):
        return None
    # What the first weights have no part of.
    moved = 1.0 - training.ema**steps
    lent = Borrowed(work.learner, training.model_copy(update={"steps": steps, "epochs": None}), work.execution)
    try:
        train(
            work.learner, rest, work.schedule, parameterization=work.parameterization, seed=work.settings.seed,
            null_condition=work.prompts.null, memory=work.training, ledger=trials.ledger, check=trials.check,
            ranks=work.ranks, ordered=work.settings.deterministic,
        )  # fmt: skip
        edges = torch.linspace(kept.t_cut, 1.0, _LEVELS + 1).tolist()
        levels = learned_levels(_changes(trials, out, rows, edges), edges)
        lent.leave_start(1.0 / moved)
        change = trials.changes(work.learner.ema, samples)
    finally:
        lent.give_back()
    error = float(change.std() / change.numel() ** 0.5)
    longer = moved * reached(training.ema, whole) / reached(training.ema, steps)
    return Pilot(levels, steps, longer, float(change.mean()), error)


def reached(decay: float, steps: int) -> float:
    """How far averaged weights are after so many steps of length 1 in one direction."""
    return steps - decay * (1.0 - decay**steps) / (1.0 - decay)


@torch.no_grad()
def _changes(trials: Trials, out: Kept, rows: int, edges: Sequence[float]) -> Tensor:
    """(rows, L) losses of the pilot less those of the base on held-out rows, in the middle of each level."""
    work, learner = trials.work, trials.work.learner
    changes = []
    for level, (low, high) in enumerate(itertools.pairwise(edges)):
        losses: tuple[list[Tensor], list[Tensor]] = [], []
        for part in torch.arange(rows, device=out.x.device).split(work.training.value):
            of_part = out.where(torch.isin(torch.arange(out.sample_id.numel(), device=part.device), part))
            for model, model_losses in zip((learner.averaged, learner.frozen), losses, strict=True):
                model_losses.append(
                    pgraft_loss(
                        model, work.schedule, of_part.x, t_cut=out.t_cut, objective=work.settings.train.objective,
                        parameterization=work.parameterization, condition=of_part.condition,
                        t=torch.full((part.numel(),), 0.5 * (low + high), dtype=torch.float64, device=part.device),
                        noise=NoiseKey(
                            work.settings.seed, of_part.sample_id, torch.full_like(part, level), Stream.PILOT
                        ),
                        frozen=None if of_part.advantage is None else learner.frozen,
                        advantage=of_part.advantage, elements=of_part.elements, reduction="none",
                    )
                )  # fmt: skip
        changes.append(torch.cat(losses[0]) - torch.cat(losses[1]))
    trials.ledger.add_calls(rows * _LEVELS * _calls_of_a_loss(trials))
    return torch.stack(changes, dim=1)


def _calls_of_a_loss(trials: Trials) -> int:
    """Of the pilot and of the base, each of which asks the frozen model again for contrast."""
    return 4 if trials.work.settings.train.objective == "contrast" else 2
