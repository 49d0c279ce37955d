"""What is asked for: prompts, and which of them the samples of a round have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.diffusion import Stream, uniform
from pgraft_fast.finetune.identity import sha256_of_tensors, sha256_of_texts
from pgraft_fast.finetune.settings import FinetuneSettings


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
