"""Copies among all samples of a round, and of rounds before."""

import torch
from torch import Tensor


def first_of_copies(eligible: Tensor, copies: Tensor, sample_id: Tensor, taken: Tensor | None = None) -> Tensor:
    """(n,) bool: of the eligible samples with equal numbers the one with the lowest id, none whose number is taken.

    eligible: (n,) bool. copies: (n,) int64, equal for copies. sample_id: (n,) int64, unique. taken: (m,) int64.
    """
    allowed = eligible if taken is None else eligible & ~torch.isin(copies, taken.to(copies.device))
    rows = allowed.nonzero().flatten()
    rows = rows[sample_id[rows].argsort()]
    _, number = copies[rows].unique(return_inverse=True)
    place = torch.arange(rows.numel(), device=rows.device)
    first = torch.full_like(place, rows.numel()).scatter_reduce_(0, number, place, "amin")
    chosen = torch.zeros_like(eligible)
    chosen[rows[first[number] == place]] = True
    return chosen
