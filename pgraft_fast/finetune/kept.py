"""Rows of a round to train on, and the order in which training reads them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.diffusion import Stream, uniform


@dataclass(frozen=True)
class Kept:
    """Rows to train on. x: (M, ...) states at t_cut, or x_0. sample_id: (M,). condition: (M, ...) or None.

    advantage: (M,) float32 of the contrast objective, or None. pairs: (M,) int64, see `balanced_order`, or None.
    """

    x: Tensor
    sample_id: Tensor
    condition: Tensor | None
    t_cut: float
    advantage: Tensor | None = None
    pairs: Tensor | None = None

    def where(self, mask: Tensor) -> "Kept":
        """The rows of a mask (M,)."""
        chosen = mask.to(self.x.device).nonzero().flatten()
        x, ids, condition, advantage, pairs = (
            None if value is None else value[chosen]
            for value in (self.x, self.sample_id, self.condition, self.advantage, self.pairs)
        )
        assert x is not None and ids is not None
        return Kept(x, ids, condition, self.t_cut, advantage, pairs)

    @property
    def rows(self) -> int:
        """How many rows a pass reads."""
        if self.pairs is None:
            return self.sample_id.numel()
        return int(self._taken().sum())

    def order(self, seed: int, epoch: int) -> Tensor:
        """(rows,) int64: the rows of a pass in a drawn order, a function of (seed, sample ids, epoch)."""
        draw = uniform(seed, self.sample_id, epoch, Stream.TRAIN_ORDER)
        order = torch.argsort(draw, stable=True)
        if self.pairs is None:
            return order
        # Place of each row among those of its side, in the drawn order.
        side = self.pairs[order]
        by_side = torch.argsort(side, stable=True)
        counts = torch.bincount(side)
        first = counts.cumsum(0) - counts
        place = torch.empty_like(by_side)
        place[by_side] = torch.arange(side.numel(), device=side.device) - first[side[by_side]]
        kept = order[place < self._taken()[side]]
        # Those of large sides have small draws: they would all come first.
        again = uniform(seed, self.sample_id[kept], epoch, Stream.TRAIN_PAIRS)
        return kept[torch.argsort(again, stable=True)]

    def _taken(self) -> Tensor:
        """Rows that a pass takes of each side: as many as the smaller one of the two has."""
        assert self.pairs is not None
        if self.pairs.numel() == 0:
            return self.pairs
        counts = torch.bincount(self.pairs, minlength=2 * (int(self.pairs.max()) // 2 + 1)).view(-1, 2)
        return counts.amin(dim=1, keepdim=True).expand(-1, 2).flatten()


def acceptance_advantages(accepted: Tensor, rewards: Tensor, strength: float) -> Tensor:
    """+-2 strength (1 - p) of accepted and of rejected candidates, p the accepted share of the group; (P, N) float32.

    0 in groups that are all accepted or all rejected, and for rewards that are not finite, which count nowhere.
    Made for passes that take as many accepted as rejected rows of a group: see `pgraft_loss` for their optimum.
    accepted: (P, N) bool. rewards: (P, N).
    """
    valid = rewards.isfinite()
    count, kept = valid.sum(dim=1, keepdim=True), (accepted & valid).sum(dim=1, keepdim=True)
    size = 2.0 * strength * (count - kept) / count.clamp(min=1)
    signed = torch.where(accepted, size, -size)
    return torch.where(valid & (kept > 0) & (kept < count), signed, 0.0).to(torch.float32)


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
