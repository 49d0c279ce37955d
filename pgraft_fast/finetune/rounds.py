"""The first half of a round: sample, score, accept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule, Stream, uniform
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.settings import FinetuneSettings
from pgraft_fast.ops import gather_rows
from pgraft_fast.rewards import score
from pgraft_fast.sampling import GraphCache, Model, Rollout, rollout
from pgraft_fast.selection import Acceptance, accept


@dataclass(frozen=True)
class Prompts:
    """What is asked for. text: (n,) strings, given to the reward. condition: (n, ...) given to the model, or None."""

    text: Sequence[str]
    condition: Tensor | None = None

    def of_round(self, seed: int, round_: int, groups: int) -> Tensor:
        """(groups,) int64: prompts of a round, a function of (seed, round) alone.

        All prompts come once, in a drawn order, before any comes again.
        """
        n = len(self.text)
        number = torch.arange(round_ * groups, (round_ + 1) * groups)
        passes = {int(p): self._order(seed, int(p), n) for p in (number // n).unique()}
        return torch.stack([passes[int(g) // n][int(g) % n] for g in number])

    @staticmethod
    def _order(seed: int, number: int, n: int) -> Tensor:
        return torch.argsort(uniform(seed, torch.arange(n), number, Stream.PROMPTS), stable=True)


@dataclass(frozen=True)
class Kept:
    """Rows to train on. x: (M, ...) states at t_cut, or x_0. sample_id: (M,). condition: (M, ...) or None."""

    x: Tensor
    sample_id: Tensor
    condition: Tensor | None
    t_cut: float


@dataclass(frozen=True)
class Candidates:
    """All samples of a round, in groups. rewards: (P, N). condition: (P N, ...) or None."""

    rollout: Rollout
    rewards: Tensor
    acceptance: Acceptance
    condition: Tensor | None

    def kept(self, cut: float, objective: str) -> Kept:
        """The accepted rows alone: states at the cut (`state`) or final samples (`clean`)."""
        index = self.acceptance.index
        rows = self.rollout.x_cut[cut] if objective == "state" else self.rollout.x_0
        kept, condition = gather_rows(index, rows, self.condition)
        return Kept(kept, self.rollout.sample_id[index], condition, self.rollout.t_cut[cut])


def collect(
    model: Model,
    schedule: Schedule,
    reward: Callable[..., object],
    prompts: Prompts,
    settings: FinetuneSettings,
    *,
    shape: Sequence[int],
    parameterization: str,
    round_: int = 0,
    cuts: Sequence[float] = (),
    tuned: Model | None = None,
    ledger: Ledger | None = None,
    check: Callable[[], None] = lambda: None,
    device: torch.device | str | None = None,
    graphs: GraphCache | None = None,
) -> Candidates:
    """Sample the groups of a round, score them and choose.

    tuned: samples come from it above `settings.train.cut`, from `model` below. check() is called between batches and
    may raise. graphs: see `rollout`. Sample ids are unique over rounds.
    """
    ledger = Ledger() if ledger is None else ledger
    sample = settings.sample
    groups, n = sample.prompts, sample.candidates
    chosen = prompts.of_round(settings.seed, round_, groups).repeat_interleave(n)
    sample_id = torch.arange(groups * n) + round_ * groups * n
    condition = None if prompts.condition is None else prompts.condition[chosen.to(prompts.condition.device)]

    def count(calls: int) -> None:
        ledger.add_calls(calls)
        check()

    with ledger.phase("sample"):
        samples = rollout(
            model,
            schedule,
            shape=shape,
            steps=sample.steps,
            solver=sample.solver,
            eta=sample.eta,
            parameterization=parameterization,
            cuts=tuple(cuts),
            seed=settings.seed,
            sample_ids=sample_id,
            tuned=tuned,
            cut=None if tuned is None else settings.train.cut,
            condition=condition,
            batch_size=sample.batch_size,
            device=device,
            graphs=graphs,
            on_batch=count,
        )
    with ledger.phase("score"):
        text = [prompts.text[int(p)] for p in chosen]
        rewards = score(reward, samples.x_0, text, sample_id, sample.batch_size, check).view(groups, n)
    with ledger.phase("accept"):
        acceptance = choose(settings, rewards, samples.x_0, samples.sample_id, draw=round_)
    return Candidates(samples, rewards, acceptance, condition)


def choose(settings: FinetuneSettings, rewards: Tensor, x_0: Tensor, sample_id: Tensor, draw: int = 0) -> Acceptance:
    """The settings' rule on rewards (P, N) of samples x_0 (P N, ...) with ids (P N,).

    For rule "binary", samples that are equal bit for bit count as copies.
    """
    select = settings.select
    return accept(
        rewards,
        select.rule,
        k=select.k,
        temperature=select.temperature,
        r_max=select.r_max,
        threshold=select.threshold,
        copies_of=_copies(x_0).view_as(rewards) if select.rule == "binary" else None,
        sample_id=sample_id.view_as(rewards),
        seed=settings.seed,
        draw=draw,
        empty=select.empty,
    )


def _copies(x_0: Tensor) -> Tensor:
    """(n,) int64: equal numbers for samples that are equal bit for bit."""
    return torch.unique(x_0.flatten(1), dim=0, return_inverse=True)[1]
