"""The first half of a round: sample, score, accept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule, Stream, uniform
from pgraft_fast.finetune.identity import sha256_of_tensors, sha256_of_texts
from pgraft_fast.finetune.kept import Kept, acceptance_advantages, of_mixed_groups, reward_advantages
from pgraft_fast.finetune.ledger import Ledger
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.scoring import Scoring
from pgraft_fast.finetune.settings import Advantage, FinetuneSettings, SampleSettings, TrainSettings
from pgraft_fast.ops import gather_rows
from pgraft_fast.sampling import GraphCache, Model, Rollout, rollout
from pgraft_fast.sampling.recorded import Recorded
from pgraft_fast.sampling.rollout import rows_of
from pgraft_fast.selection import Acceptance, accept, first_of_copies


@dataclass(frozen=True)
class Prompts:
    """What is asked for. text: (n,) strings, given to the reward. condition: (n, ...) given to the model, or None.

    null: the condition of none, one row. prepare(numbers): called before prompts are sampled or trained on.
    elements(condition (B, ...)) -> (B, N) bool, where samples (B, N, ...) are sets of different sizes: which rows are
    elements; the others count in no loss. same(samples, condition) -> (n,) int64, equal for samples that count as
    copies of each other, in every call; default those that are equal bit for bit.
    """

    text: Sequence[str]
    condition: Tensor | None = None
    null: Tensor | None = None
    prepare: Callable[[Tensor], None] = lambda numbers: None
    elements: Callable[[Tensor], Tensor] | None = None
    same: Callable[[Tensor, Tensor | None], Tensor] | None = None

    def of_round(self, seed: int, round_: int, groups: int) -> Tensor:
        """(groups,) int64: prompts of a round, a function of (seed, round) alone.

        All prompts come once, in a drawn order, before any comes again.
        """
        n = len(self.text)
        number = torch.arange(round_ * groups, (round_ + 1) * groups)
        passes = {int(p): self._order(seed, int(p), n) for p in (number // n).unique()}
        return torch.stack([passes[int(g) // n][int(g) % n] for g in number])

    def elements_of(self, condition: Tensor | None) -> Tensor | None:
        """(B, N) bool, or None where all rows are some."""
        return None if self.elements is None or condition is None else self.elements(condition)

    def contents(self) -> dict[str, str]:
        """Of texts and conditions, in words."""
        digests = {"text": sha256_of_texts(self.text, "prompts")}
        if self.condition is not None:
            digests["condition"] = sha256_of_tensors({"rows": self.condition})
        return digests

    @staticmethod
    def _order(seed: int, number: int, n: int) -> Tensor:
        return torch.argsort(uniform(seed, torch.arange(n), number, Stream.PROMPTS), stable=True)


@dataclass(frozen=True)
class Candidates:
    """All samples of a round, in groups. rewards: (P, N). condition: (P N, ...) or None. elements: (P N, M) bool, which
    rows of a sample are some, or None. copies: (P, N) int64, see `copies_of`, or None.
    """

    rollout: Rollout
    rewards: Tensor
    acceptance: Acceptance
    condition: Tensor | None
    elements: Tensor | None = None
    copies: Tensor | None = None

    def kept(self, cut: float, objective: str, *, strength: float = 1.0, advantage: Advantage = "acceptance") -> Kept:
        """The rows that an objective trains on: states at the cut (`state`) or final samples (`clean`) of what was
        accepted, or states at the cut of what was accepted and what was not (`contrast`).

        strength, advantage: of contrast, see `TrainSettings`. A group that teaches nothing gives no row then.
        """
        if objective == "contrast":
            return self._contrast(cut, strength, advantage)
        index = self.acceptance.index
        rows = self.rollout.x_cut[cut] if objective == "state" else self.rollout.x_0
        kept, condition = gather_rows(index, rows, self.condition)
        return Kept(
            kept, self.rollout.sample_id[index], condition, self.rollout.t_cut[cut], elements=self._elements(index)
        )

    def _elements(self, index: Tensor) -> Tensor | None:
        return None if self.elements is None else self.elements[index]

    def kept_for(self, cut: float, training: TrainSettings) -> Kept:
        """See `kept`."""
        return self.kept(cut, training.objective, strength=training.strength, advantage=training.advantage)

    def _contrast(self, cut: float, strength: float, kind: Advantage) -> Kept:
        mask, rewards = self.acceptance.mask, self.rewards
        by_side = kind == "acceptance"
        of_all = acceptance_advantages(mask, rewards, strength) if by_side else reward_advantages(rewards, strength)
        # Of a group that is all accepted or all rejected the rule has nothing to say.
        teaches = of_mixed_groups(mask, rewards) & (of_all != 0).any(dim=1, keepdim=True)
        group = torch.arange(mask.shape[0], device=mask.device)[:, None].expand_as(mask)
        index = teaches.flatten().nonzero().flatten()
        device = self.rollout.sample_id.device
        advantage, place, index = (
            value.to(device)
            for value in (of_all.flatten()[index], (2 * group + mask if by_side else group).flatten()[index], index)
        )
        kept, condition = gather_rows(index, self.rollout.x_cut[cut], self.condition)
        return Kept(
            kept, self.rollout.sample_id[index], condition, self.rollout.t_cut[cut], advantage,
            elements=self._elements(index), **{"side" if by_side else "group": place},
        )  # fmt: skip


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
) -> Candidates:
    """Sample the groups of a round, score them and choose.

    taken: (m,) int64, see `choose`.
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
    parts, rewards = draw_and_score(draw, reward, prompt_batch, settings.sample, memory, ledger, check)
    samples = _joined(parts)
    rewards = rewards.view(settings.sample.prompts, settings.sample.candidates)
    condition = rows_of(prompt_batch.condition, samples.sample_id)
    with ledger.phase("accept"):
        copies = copies_of(settings, prompts, samples.x_0, condition)
        acceptance = choose(settings, rewards, samples.sample_id, copies, taken, draw=round_)
    return Candidates(
        samples, rewards, acceptance, condition, prompts.elements_of(condition),
        None if copies is None else copies.view_as(rewards),
    )  # fmt: skip


@dataclass(frozen=True)
class PromptBatch:
    """The samples of a round. sample_id: (n,) int64. text: (n,). condition: (n, ...) or None. prompt: (n,) numbers."""

    sample_id: Tensor
    text: list[str]
    condition: Tensor | None
    prompt: Tensor

    @classmethod
    def of_round(cls, prompts: Prompts, settings: FinetuneSettings, round_: int) -> "PromptBatch":
        """Groups of candidates, their prompts drawn."""
        groups, n = settings.sample.prompts, settings.sample.candidates
        chosen = prompts.of_round(settings.seed, round_, groups).repeat_interleave(n)
        return cls.of(prompts, chosen, torch.arange(groups * n) + round_ * groups * n)

    @classmethod
    def of(cls, prompts: Prompts, chosen: Tensor, sample_id: Tensor) -> "PromptBatch":
        """Samples (n,) of these prompts (n,)."""
        prompts.prepare(chosen)
        condition = None if prompts.condition is None else prompts.condition[chosen.to(prompts.condition.device)]
        return cls(sample_id, [prompts.text[int(p)] for p in chosen], condition, chosen)


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
) -> tuple[list[Drawn], Tensor]:
    """Batches of draw(sample_ids=, condition=, batch_size=, on_batch=) and the rewards (n,) of all samples.

    phases: of the ledger. counted: whether the model calls are.
    """
    memory = BatchSize(sample.batch_size, "sampling") if memory is None else memory
    parts: list[Drawn] = []
    with Scoring(reward, sample.batch_size, check, sample.overlap) as scoring:

        def count(calls: int) -> None:
            ledger.add_calls(calls if counted else 0)
            check()
            scoring.raise_early()

        def batch(low: int, size: int) -> Drawn:
            rows = slice(low, low + size)
            condition = None if prompt_batch.condition is None else prompt_batch.condition[rows]
            ids = prompt_batch.sample_id[rows]
            return draw(sample_ids=ids, condition=condition, batch_size=max(1, ids.numel()), on_batch=count)

        low = 0
        while low < prompt_batch.sample_id.numel():
            with ledger.phase(phases[0]):
                parts.append(memory.run(partial(batch, low)))
            high = low + parts[-1].sample_id.numel()
            with ledger.phase(phases[1]):
                scoring.add(parts[-1].x_0, prompt_batch.text[low:high], prompt_batch.sample_id[low:high])
            low = high
        with ledger.phase(phases[1]):
            return parts, scoring.rewards()


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


def copies_of(settings: FinetuneSettings, prompts: Prompts, samples: Tensor, condition: Tensor | None) -> Tensor | None:
    """(n,) int64, equal for samples that are the same: by the prompts' `same`, or bit for bit. None where the rule does
    not ask.
    """
    if settings.select.rule != "binary":
        return None
    if prompts.same is not None:
        return prompts.same(samples, condition)
    return torch.unique(samples.flatten(1), dim=0, return_inverse=True)[1]
