"""Rows of a round to train on, and the order in which training reads them."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.diffusion import Stream, uniform


@dataclass(frozen=True)
class Kept:
    """Rows to train on. x: (M, ...) states at t_cut, or x_0. sample_id: (M,). condition: (M, ...) or None.

    For the contrast objective, or None: advantage, (M,) float32. side: (M,) int64, twice the number of the group, and 1
    more for an accepted row; a pass takes as many of both sides of a group, in pairs. group: (M,) int64, where a pass
    takes all rows. elements: (M, N) bool of x (M, N, ...), which rows of a set are its elements, or None for all.
    """

    x: Tensor
    sample_id: Tensor
    condition: Tensor | None
    t_cut: float
    advantage: Tensor | None = None
    side: Tensor | None = None
    group: Tensor | None = None
    elements: Tensor | None = None

    def where(self, mask: Tensor) -> "Kept":
        """The rows of a mask (M,)."""
        chosen = mask.to(self.x.device).nonzero().flatten()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        rows: dict[str, Any] = {name: value[chosen] for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **rows)

    @property
    def rows(self) -> int:
        """How many rows a pass reads."""
        return self.sample_id.numel() if self.side is None else int(self._taken().sum())

    def order(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """(rows,) int64 the rows of a pass in a drawn order, and (rows,) int64 the sample id whose noise each takes; a
        function of (seed, sample ids, epoch).

        Rows that are contrasted with each other lie side by side and take the same noise, of which little is left in
        their difference.
        """
        draw = uniform(seed, self.sample_id, epoch, Stream.TRAIN_ORDER)
        order = torch.argsort(draw, stable=True)
        if self.side is not None:
            return self._pairs(order, seed, epoch)
        if self.group is None:
            return order, self.sample_id[order]
        # Whole groups, in the order of their first rows.
        _, group = self.group.unique(return_inverse=True)
        first, leader = torch.zeros_like(order), torch.zeros_like(order)
        first.scatter_reduce_(0, group, torch.argsort(order), "amin", include_self=False)
        leader.scatter_reduce_(0, group, self.sample_id, "amin", include_self=False)
        order = order[torch.argsort(first[group[order]], stable=True)]
        return order, leader[group[order]]

    def _pairs(self, order: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Pairs of an accepted and a rejected row of a group, in a drawn order."""
        assert self.side is not None
        side = self.side[order]
        by_side = torch.argsort(side, stable=True)
        counts = torch.bincount(side)
        place = torch.arange(side.numel(), device=side.device) - (counts.cumsum(0) - counts)[side[by_side]]
        taken = place < self._taken()[side[by_side]]
        rows, side, place = order[by_side][taken], side[by_side][taken], place[taken]
        # By group and place, the accepted one first.
        both = torch.argsort(2 * (place + (side // 2) * side.numel()) + (1 - side % 2), stable=True)
        pairs = rows[both].view(-1, 2)
        leader = self.sample_id[pairs[:, 0]]
        drawn = torch.argsort(uniform(seed, leader, epoch, Stream.TRAIN_PAIRS), stable=True)
        return pairs[drawn].flatten(), leader[drawn].repeat_interleave(2)

    def _taken(self) -> Tensor:
        """Rows that a pass takes of each side: as many as the smaller one of the two has."""
        assert self.side is not None
        if self.side.numel() == 0:
            return self.side
        counts = torch.bincount(self.side, minlength=2 * (int(self.side.max()) // 2 + 1)).view(-1, 2)
        return counts.amin(dim=1, keepdim=True).expand(-1, 2).flatten()


def acceptance_advantages(accepted: Tensor, rewards: Tensor, strength: float) -> Tensor:
    """+-2 strength (1 - p) of accepted and of rejected candidates, p the accepted share of the group; (P, N) float32.

    0 in groups that are all accepted or all rejected, and for rewards that are not finite, which count nowhere.
    Made for passes that take as many accepted as rejected rows of a group: see `pgraft_loss` for their optimum.
    accepted: (P, N) bool. rewards: (P, N).
    """
    valid = rewards.isfinite()
    count, rejected = valid.sum(dim=1, keepdim=True), (valid & ~accepted).sum(dim=1, keepdim=True)
    size = 2.0 * strength * rejected / count.clamp(min=1)
    return torch.where(of_mixed_groups(accepted, rewards), torch.where(accepted, size, -size), 0.0).to(torch.float32)


def of_mixed_groups(accepted: Tensor, rewards: Tensor) -> Tensor:
    """(P, N) bool: candidates with a finite reward in groups of which some are accepted and some rejected."""
    valid = rewards.isfinite()
    return valid & (valid & accepted).any(dim=1, keepdim=True) & (valid & ~accepted).any(dim=1, keepdim=True)


def reward_advantages(rewards: Tensor, strength: float) -> Tensor:
    """strength (r - mean of the group) / s, with s^2 the mean variance within groups; (P, N) float32.

    0 for rewards that are not finite, which count nowhere, and where no group has a spread. rewards: (P, N).
    """
    valid, values = rewards.isfinite(), rewards.to(torch.float64)
    count = valid.sum(dim=1, keepdim=True)
    mean = values.where(valid, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    rest = (values - mean).where(valid, 0.0)
    # Rounding of a mean must not look like an advantage.
    spread = (values.where(valid, -torch.inf).amax(1) > values.where(valid, torch.inf).amin(1))[:, None]
    rest = rest.where(spread, 0.0)
    freedom = (count - 1).clamp(min=0).sum().clamp(min=1)
    scale = (rest.square().sum() / freedom).sqrt()
    return (strength * rest / scale.clamp(min=1e-30)).to(torch.float32)
