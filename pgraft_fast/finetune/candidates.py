"""The samples of a round, and the rows of them that training reads."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pgraft_fast.finetune.kept import Kept, acceptance_advantages, of_mixed_groups, reward_advantages
from pgraft_fast.finetune.settings import Advantage, TrainSettings
from pgraft_fast.ops import gather_rows
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.sampling import Rollout
from pgraft_fast.selection import Acceptance


@dataclass(frozen=True)
class Candidates:
    """All samples of a round, in groups. rewards: (P, N). condition: (P N, ...) or None. elements: (P N, M) bool, which
    rows of a sample are some, or None. copies: (P, N) int64, see `copies_of`, or None. dropped: (P, N) bool, see
    `dropped_by`, or None.

    sample_id: (P N,). rollout: of the rows that this rank has drawn, all of them where there is one rank or after
    `whole`. The methods are called by all ranks.
    """

    rollout: Rollout
    rewards: Tensor
    acceptance: Acceptance
    condition: Tensor | None
    sample_id: Tensor
    elements: Tensor | None = None
    copies: Tensor | None = None
    dropped: Tensor | None = None
    ranks: Ranks = ALONE

    def kept(self, cut: float, objective: str, *, strength: float = 1.0, advantage: Advantage = "acceptance") -> Kept:
        """The rows that an objective trains on: states at the cut (`state`) or final samples (`clean`) of what was
        accepted, or states at the cut of what was accepted and what was not (`contrast`).

        strength, advantage: of contrast, see `TrainSettings`. A group that teaches nothing gives no row then.
        """
        if objective == "contrast":
            return self._contrast(cut, strength, advantage)
        index = self.acceptance.index
        rows = self.rollout.x_cut[cut] if objective == "state" else self.rollout.x_0
        kept, condition = self._rows(index, rows)
        return Kept(kept, self.sample_id[index], condition, self.rollout.t_cut[cut], elements=self._elements(index))

    def whole(self) -> "Candidates":
        """The same with the states of all rows on every rank."""
        if self.ranks.size == 1:
            return self
        n = self.rewards.shape[1]
        counts = self.ranks.counts(self.sample_id.numel(), n)
        rollout = self.rollout
        samples = replace(
            rollout, final=self.ranks.rows(rollout.final, counts), sample_id=self.sample_id,
            x_cut={cut: self.ranks.rows(states, counts) for cut, states in rollout.x_cut.items()},
        )  # fmt: skip
        return replace(self, rollout=samples, ranks=ALONE)

    def _rows(self, index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Those of an index (m,) into all candidates, from the ranks that have drawn them, and their conditions."""
        if self.ranks.size == 1:
            kept, condition = gather_rows(index, rows, self.condition)
            return kept, condition
        bounds = self.ranks.bounds(self.sample_id.numel(), self.rewards.shape[1])
        owner = torch.bucketize(index.cpu(), torch.tensor([high for _, high in bounds]), right=True)
        own = index[(owner == self.ranks.rank).to(index.device)] - bounds[self.ranks.rank][0]
        counts = torch.bincount(owner, minlength=self.ranks.size).tolist()
        gathered = self.ranks.rows(rows[own.to(rows.device)], counts)
        # By rank, and in the order of the index within each.
        place = torch.argsort(torch.argsort(owner, stable=True)).to(gathered.device)
        return gathered[place], None if self.condition is None else self.condition[index]

    def _elements(self, index: Tensor) -> Tensor | None:
        return None if self.elements is None else self.elements[index]

    def kept_for(self, cut: float, training: TrainSettings) -> Kept:
        """See `kept`."""
        return self.kept(cut, training.objective, strength=training.strength, advantage=training.advantage)

    def _contrast(self, cut: float, strength: float, kind: Advantage) -> Kept:
        mask, rewards = self.acceptance.mask, self.rewards
        if self.dropped is not None:
            # As good as the accepted ones: on neither side.
            rewards = rewards.masked_fill(self.dropped, torch.nan)
        by_side = kind == "acceptance"
        of_all = acceptance_advantages(mask, rewards, strength) if by_side else reward_advantages(rewards, strength)
        # Of a group that is all accepted or all rejected the rule has nothing to say.
        teaches = of_mixed_groups(mask, rewards) & (of_all != 0).any(dim=1, keepdim=True)
        group = torch.arange(mask.shape[0], device=mask.device)[:, None].expand_as(mask)
        index = teaches.flatten().nonzero().flatten()
        device = self.sample_id.device
        advantage, place, index = (
            value.to(device)
            for value in (of_all.flatten()[index], (2 * group + mask if by_side else group).flatten()[index], index)
        )
        kept, condition = self._rows(index, self.rollout.x_cut[cut])
        return Kept(
            kept, self.sample_id[index], condition, self.rollout.t_cut[cut], advantage,
            elements=self._elements(index), **{"side" if by_side else "group": place},
        )  # fmt: skip
