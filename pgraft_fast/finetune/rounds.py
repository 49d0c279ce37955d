"""The first half of a round: sample, score, accept."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule
from pgraft_fast.finetune.candidates import Candidates
from pgraft_fast.finetune.drawing import draw_and_score
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.prompts import PromptBatch, Prompts
from pgraft_fast.finetune.settings import FinetuneSettings
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.sampling import GraphCache, Model, Rollout, rollout
from pgraft_fast.sampling.rollout import rows_of
from pgraft_fast.selection import Acceptance, accept, first_of_copies


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
    memory: BatchSize | None = None,
    ledger: Ledger | None = None,
    check: Callable[[], None] = lambda: None,
    device: torch.device | str | None = None,
    graphs: GraphCache | None = None,
    taken: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Candidates:
    """Sample the groups of a round, score them and choose.

    taken: (m,) int64, see `choose`. ranks: among which the groups are dealt.
    tuned: samples come from it above `settings.cut`, from `model` below. memory: trajectories at once. check()
    is called between batches and may raise. graphs: see `rollout`. Sample ids are unique over rounds. With
    `settings.sample.overlap` a batch is scored while the next is drawn.
    """
    ledger = Ledger() if ledger is None else ledger
    prompt_batch = PromptBatch.of_round(prompts, settings, round_)
    draw = partial(
        rollout,
        model,
        schedule,
        shape=shape,
        steps=settings.sample.steps,
        solver=settings.sample.solver,
        eta=settings.sample.eta,
        parameterization=parameterization,
        cuts=tuple(cuts),
        seed=settings.seed,
        tuned=tuned,
        cut=None if tuned is None else settings.cut,
        device=device,
        graphs=graphs,
    )
    n = settings.sample.candidates
    parts, rewards = draw_and_score(
        draw, reward, prompt_batch, settings.sample, memory, ledger, check, ranks=ranks, unit=n
    )
    samples, rewards = _joined(parts), rewards.view(settings.sample.prompts, n)
    sample_id = prompt_batch.sample_id.to(samples.sample_id.device)
    condition = rows_of(prompt_batch.condition, sample_id)
    with ledger.phase("accept"):
        copies = None
        if settings.select.rule == "binary":
            with ranks.together():
                low, high = ranks.part(sample_id.numel(), n)
                copies = copies_of(settings, prompts, samples.x_0, None if condition is None else condition[low:high])
            assert copies is not None
            copies = ranks.rows(copies, ranks.counts(sample_id.numel(), n))
        acceptance = choose(settings, rewards, sample_id, copies, taken, draw=round_)
    return Candidates(
        samples, rewards, acceptance, condition, sample_id, prompts.elements_of(condition),
        None if copies is None else copies.view_as(rewards), dropped_by(settings, rewards, acceptance), ranks,
    )  # fmt: skip


def _joined(parts: Sequence[Rollout]) -> Rollout:
    """One rollout of its batches."""
    first = parts[0]
    return replace(
        first,
        final=torch.cat([part.final for part in parts]),
        x_cut={cut: torch.cat([part.x_cut[cut] for part in parts]) for cut in first.x_cut},
        sample_id=torch.cat([part.sample_id for part in parts]),
        model_calls=sum(part.model_calls for part in parts),
    )


def choose(
    settings: FinetuneSettings, rewards: Tensor, sample_id: Tensor, copies: Tensor | None, taken: Tensor | None = None,
    draw: int = 0,
) -> Acceptance:  # fmt: skip
    """The settings' rule on rewards (P, N) of samples with ids (P N,).

    copies: of `copies_of`, for rule "binary". By `select.copies` those of a group, or of all groups, count as copies,
    and what is in `taken` is not accepted again.
    """
    select = settings.select
    if copies is not None and select.copies != "group":
        good = rewards >= select.limit
        first = first_of_copies(good.flatten(), copies, sample_id, taken)
        rewards = rewards.where(first.view_as(rewards) | ~good, torch.nan)
    return accept(
        rewards,
        select.rule,
        k=select.k,
        temperature=select.temperature,
        r_max=select.r_max,
        threshold=select.threshold,
        copies_of=None if copies is None else copies.view_as(rewards),
        sample_id=sample_id.view_as(rewards),
        seed=settings.seed,
        draw=draw,
        empty=select.empty,
    )


def dropped_by(settings: FinetuneSettings, rewards: Tensor, acceptance: Acceptance) -> Tensor | None:
    """(P, N) bool: what the rule did not accept only because it is a copy; None of rules that know no copies."""
    if settings.select.rule != "binary":
        return None
    return (rewards >= settings.select.limit) & ~acceptance.mask


def copies_of(settings: FinetuneSettings, prompts: Prompts, samples: Tensor, condition: Tensor | None) -> Tensor | None:
    """(n,) int64, equal for samples that are the same: by the prompts' `same`, or bit for bit. None where the rule does
    not ask.
    """
    if settings.select.rule != "binary":
        return None
    if prompts.same is not None:
        return prompts.same(samples, condition)
    return bits_of(samples)


def bits_of(rows: Tensor) -> Tensor:
    """(n,) int64, a digest of the bits of each row (n, ...), the same on every rank and in every round."""
    # 0 and -0 are one number.
    flat = (rows.detach().cpu() + 0.0).contiguous().flatten(1).view(torch.uint8).numpy()
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in flat]
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], device=rows.device)
