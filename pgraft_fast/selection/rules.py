"""Acceptance rules: which candidates of each group are kept.

All rules share one total order, (reward descending, sample id ascending), and never keep a reward that is not
finite. Everything runs on the device of the rewards and reads nothing back, except `empty="raise"` and
`Acceptance.index`, whose length is data-dependent.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pgraft_fast.diffusion import Stream, uniform
from pgraft_fast.errors import InputError
from pgraft_fast.selection.groups import Groups

RULES = ("top_k", "best_of_n", "classical", "threshold", "preference", "binary")
EMPTY_POLICIES = ("skip", "best", "raise")


@dataclass(frozen=True)
class Acceptance:
    """mask: bool, the shape of the rewards. count: () int64. group_count: (P,) int64, accepted in each group."""

    mask: Tensor
    group_count: Tensor

    @property
    def count(self) -> Tensor:
        """Accepted in all, a device scalar."""
        return self.group_count.sum()

    @property
    def index(self) -> Tensor:
        """(M,) int64: flat indices of the accepted candidates, ascending. Waits for the device."""
        return self.mask.flatten().nonzero().squeeze(1)

    def packed_index(self, size: int) -> Tensor:
        """(size,) int64: as `index`, filled up with -1 (or cut off), without waiting for the device."""
        return torch.nonzero_static(self.mask.flatten(), size=size, fill_value=-1).squeeze(1)


def accept(
    rewards: Tensor,
    rule: str,
    *,
    k: int | None = None,
    temperature: float | None = None,
    r_max: float | Tensor | None = None,
    threshold: float | None = None,
    copies_of: Tensor | None = None,
    offsets: Tensor | None = None,
    sample_id: Tensor | None = None,
    seed: int = 0,
    draw: int = 0,
    empty: str = "skip",
) -> Acceptance:
    """Choose candidates by generalised rejection sampling.

    rewards: (P, N), P groups of N candidates; or (M,) with `offsets` (P + 1,) for groups of unequal length.
    sample_id: int64 of the shape of rewards, unique; default 0, 1, 2 ...

    rule:
      top_k        the best k of each group
      best_of_n    the best of each group
      classical    each with probability exp((r - r_max) / temperature); r_max: scalar or (P,), default the
                   group's largest reward. The draw is keyed by (seed, sample id, draw).
      threshold    r >= threshold
      preference   the better one of candidates 0 and 1, 2 and 3, ... (an odd one out is dropped)
      binary       r >= threshold (default 0.5), one copy of each distinct candidate: those of a group with equal
                   `copies_of` (int64, shape of rewards) count as copies, the lowest sample id stays

    empty: a group with nothing accepted is left out ("skip"), gives its best finite candidate ("best"), or
    raises ("raise").
    """
    if rule not in RULES:
        raise InputError(f"rule={rule!r} is unknown; known: {', '.join(RULES)}")
    if empty not in EMPTY_POLICIES:
        raise InputError(f"empty={empty!r} is unknown; known: {', '.join(EMPTY_POLICIES)}")
    given = {"k": k, "temperature": temperature, "r_max": r_max, "threshold": threshold, "copies_of": copies_of}
    for name in (name for name, value in given.items() if value is not None):
        if name not in _TAKES[rule]:
            raise InputError(f"{name}= has no meaning for rule {rule!r}")
    groups = Groups.of(rewards, offsets, sample_id)
    match rule:
        case "top_k" | "best_of_n":
            kept = _best(groups, 1 if rule == "best_of_n" else k)
        case "classical":
            kept = _classical(groups, temperature, r_max, seed, draw)
        case "threshold":
            kept = groups.reward >= _needed(rule, "threshold", threshold)
        case "preference":
            kept = _preference(groups)
        case _:
            kept = _distinct(groups, groups.reward >= (0.5 if threshold is None else threshold), copies_of)
    kept = kept & groups.valid
    if empty == "best":
        kept = kept | (~kept.any(dim=1, keepdim=True) & groups.valid & (groups.rank() == 0))
    group_count = kept.sum(dim=1)
    if empty == "raise" and bool((group_count == 0).any()):
        group = int((group_count == 0).nonzero()[0])
        raise InputError(f"group {group} has no acceptable candidate (rule {rule})")
    return Acceptance(groups.restore(kept), group_count)


_TAKES: dict[str, set[str]] = {
    "top_k": {"k"},
    "best_of_n": set(),
    "classical": {"temperature", "r_max"},
    "threshold": {"threshold"},
    "preference": set(),
    "binary": {"threshold", "copies_of"},
}


def _needed(rule: str, name: str, value: float | None) -> float:
    if value is None:
        raise InputError(f"rule {rule!r} needs {name}=")
    return value


def _best(groups: Groups, k: int | None) -> Tensor:
    if not isinstance(k, int) or k < 1:
        raise InputError(f"k={k}: rule 'top_k' needs a whole number of at least 1")
    groups.check_at_least(k)
    return groups.rank() < k


def _classical(groups: Groups, temperature: float | None, r_max: float | Tensor | None, seed: int, draw: int) -> Tensor:
    scale = _needed("classical", "temperature", temperature)
    if not scale > 0:
        raise InputError(f"temperature={scale}: it must be above 0")
    reward = groups.reward.to(torch.float64)
    if r_max is None:
        top = reward.amax(dim=1, keepdim=True)
    else:
        top = torch.as_tensor(r_max, dtype=torch.float64, device=reward.device).view(-1, 1)
    u = uniform(seed, groups.sample_id.flatten(), draw, Stream.ACCEPTANCE).view_as(reward)
    return u < torch.exp((reward - top) / scale)


def _preference(groups: Groups) -> Tensor:
    even = groups.width - groups.width % 2
    reward = groups.reward[:, :even].unflatten(1, (-1, 2))
    sample_id = groups.sample_id[:, :even].unflatten(1, (-1, 2))
    present = groups.present[:, :even].unflatten(1, (-1, 2)).all(dim=2, keepdim=True)
    first, second = reward.unbind(2)
    tie_to_first = sample_id[..., 0] < sample_id[..., 1]
    first_wins = (first > second) | ((first == second) & tie_to_first)
    kept = torch.stack((first_wins, ~first_wins), dim=2) & present
    return torch.nn.functional.pad(kept.flatten(1), (0, groups.width - even))


def _distinct(groups: Groups, positive: Tensor, copies_of: Tensor | None) -> Tensor:
    if copies_of is None:
        return positive
    key = groups.align(copies_of, "copies_of")
    positive = positive & groups.valid
    # Sorted by (positive first, key, sample id), a copy stands right behind its like.
    order = torch.argsort(groups.sample_id, dim=1, stable=True)
    order = order.gather(1, torch.argsort(key.gather(1, order), dim=1, stable=True))
    order = order.gather(1, torch.argsort((~positive).gather(1, order).to(torch.uint8), dim=1, stable=True))
    sorted_key, sorted_positive = key.gather(1, order), positive.gather(1, order)
    fresh = sorted_positive.clone()
    fresh[:, 1:] &= sorted_key[:, 1:] != sorted_key[:, :-1]
    return torch.zeros_like(positive).scatter(1, order, fresh)
