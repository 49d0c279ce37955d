"""Groups of candidates as one padded (P, N) table, whatever their lengths: the reference's view of rewards."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Where the flat candidates of unequal groups stand in the padded table, and back.

    flat_index: (P, N) for the table. group, column: (M,) for the flat candidates.
    """

    flat_index: Tensor
    group: Tensor
    column: Tensor


@dataclass(frozen=True)
class Groups:
    """reward (P, N) with -inf where not finite or absent; valid: finite; present: not padding."""

    reward: Tensor
    sample_id: Tensor
    valid: Tensor
    present: Tensor
    ragged: Ragged | None

    @staticmethod
    def of(rewards: Tensor, offsets: Tensor | None, sample_id: Tensor | None) -> "Groups":
        """From (P, N) rewards, or (M,) rewards with offsets (P + 1,), rising from 0 to M."""
        if sample_id is None:
            sample_id = torch.arange(rewards.numel(), device=rewards.device).view(rewards.shape)
        if offsets is None:
            present, ragged = torch.ones_like(rewards, dtype=torch.bool), None
        else:
            present, ragged = _pad(rewards, offsets)
            rewards, sample_id = rewards[ragged.flat_index], sample_id[ragged.flat_index]
        valid = present & torch.isfinite(rewards)
        reward = torch.where(valid, rewards, torch.full_like(rewards, -torch.inf))
        return Groups(reward, sample_id, valid, present, ragged)

    @property
    def width(self) -> int:
        """N, the longest group."""
        return self.reward.shape[1]

    def rank(self) -> Tensor:
        """(P, N) int64: place in the total order (reward descending, sample id ascending), 0 the best."""
        by_id = torch.argsort(self.sample_id, dim=1, stable=True)
        by_reward = torch.argsort(self.reward.gather(1, by_id), dim=1, stable=True, descending=True)
        order = by_id.gather(1, by_reward)
        places = torch.arange(self.width, device=order.device).expand_as(order)
        return torch.empty_like(order).scatter_(1, order, places)

    def align(self, values: Tensor) -> Tensor:
        """Another per-candidate tensor, of the shape of the rewards that were given, brought to (P, N)."""
        return values if self.ragged is None else values[self.ragged.flat_index]

    def restore(self, mask: Tensor) -> Tensor:
        """A (P, N) mask in the shape of the rewards that were given."""
        return mask if self.ragged is None else mask[self.ragged.group, self.ragged.column]


def _pad(rewards: Tensor, offsets: Tensor) -> tuple[Tensor, Ragged]:
    """The padded table of unequal groups. Reads the longest length back."""
    lengths = offsets.diff()
    columns = torch.arange(int(lengths.max()), device=rewards.device)
    present = columns < lengths[:, None]
    flat_index = (offsets[:-1, None] + columns).clamp_(max=rewards.numel() - 1)
    flat = torch.arange(rewards.numel(), device=rewards.device)
    group = torch.searchsorted(offsets, flat, right=True) - 1
    return present, Ragged(flat_index, group, flat - offsets[group])
