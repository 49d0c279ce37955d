"""Groups of candidates as one padded (P, N) table, whatever their lengths."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.errors import InputError


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
        if not isinstance(rewards, Tensor):
            raise InputError(f"rewards must be a tensor, got {type(rewards).__name__}")
        if not rewards.is_floating_point():
            rewards = rewards.to(torch.float32)
        if sample_id is None:
            sample_id = torch.arange(rewards.numel(), device=rewards.device).view(rewards.shape)
        if sample_id.shape != rewards.shape:
            given, wanted = tuple(sample_id.shape), tuple(rewards.shape)
            raise InputError(f"sample_id has shape {given}, rewards {wanted}: they must agree")
        if offsets is None:
            if rewards.ndim != 2 or rewards.shape[1] == 0:
                raise InputError(f"rewards must be (P, N), or (M,) with offsets; got {tuple(rewards.shape)}")
            present, ragged = torch.ones_like(rewards, dtype=torch.bool), None
        else:
            present, ragged = _pad(rewards, offsets)
            rewards, sample_id = rewards[ragged.flat_index], sample_id[ragged.flat_index]
        valid = present & torch.isfinite(rewards)
        reward = torch.where(valid, rewards, torch.full_like(rewards, -torch.inf))
        return Groups(reward, sample_id.to(torch.int64), valid, present, ragged)

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

    def check_at_least(self, k: int) -> None:
        """Every group has k candidates. Reads lengths back only for unequal groups."""
        if self.ragged is None:
            if k > self.width:
                raise InputError(f"k={k} is more than the {self.width} candidates of a group")
            return
        lengths = self.present.sum(dim=1)
        if bool((lengths < k).any()):
            group = int((lengths < k).nonzero()[0])
            raise InputError(f"k={k} is more than the {int(lengths[group])} candidates of group {group}")

    def align(self, values: Tensor, name: str) -> Tensor:
        """Another per-candidate tensor, of the shape of the rewards that were given, brought to (P, N)."""
        expected = tuple(self.reward.shape if self.ragged is None else self.ragged.group.shape)
        if tuple(values.shape) != expected:
            raise InputError(f"{name} has shape {tuple(values.shape)}, rewards {expected}: they must agree")
        return values if self.ragged is None else values[self.ragged.flat_index]

    def restore(self, mask: Tensor) -> Tensor:
        """A (P, N) mask in the shape of the rewards that were given."""
        return mask if self.ragged is None else mask[self.ragged.group, self.ragged.column]


def _pad(rewards: Tensor, offsets: Tensor) -> tuple[Tensor, Ragged]:
    """The padded table of unequal groups. Reads the longest length back if the offsets are on a device."""
    offsets = torch.as_tensor(offsets, dtype=torch.int64)
    lengths = offsets.diff()
    if (
        rewards.ndim != 1
        or rewards.numel() == 0
        or offsets.ndim != 1
        or offsets.numel() < 2
        or int(offsets[0]) != 0
        or int(offsets[-1]) != rewards.numel()
        or bool((lengths < 0).any())
    ):
        raise InputError(f"offsets must rise from 0 to {rewards.numel()}, the number of rewards, in one dimension")
    width = int(lengths.max())
    offsets, lengths = offsets.to(rewards.device), lengths.to(rewards.device)
    columns = torch.arange(width, device=rewards.device)
    present = columns < lengths[:, None]
    flat_index = (offsets[:-1, None] + columns).clamp_(max=rewards.numel() - 1)
    flat = torch.arange(rewards.numel(), device=rewards.device)
    group = torch.searchsorted(offsets, flat, right=True) - 1
    return present, Ragged(flat_index, group, flat - offsets[group])
