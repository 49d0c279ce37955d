"""Acceptance rules: which candidates of each group are kept.

All rules share one total order, (reward descending, sample id ascending), and never keep a reward that is not
finite. Everything runs on the device of the rewards and reads nothing back, except `empty="raise"`, a check of k
against unequal groups, and `Acceptance.index`, whose length is data-dependent.
"""

import torch
from torch import Tensor

from pgraft_fast.diffusion import Stream, step_word
from pgraft_fast.errors import InputError
from pgraft_fast.ops import Filtered, reward_filter

RULES = ("top_k", "best_of_n", "classical", "threshold", "preference", "binary")
EMPTY_POLICIES = ("skip", "best", "raise")


class Acceptance(Filtered):
    """What was kept: mask, group_count, packed, count of `ops.reward_filter`, and the indices alone."""

    @property
    def index(self) -> Tensor:
        """(M,) int64: flat indices of the accepted candidates, ascending. Waits for the device."""
        return self.packed[: int(self.count)]


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
    raises ("raise"). Raises InputError.
    """
    if rule not in RULES:
        raise InputError(f"rule={rule!r} is unknown; known: {', '.join(RULES)}")
    if empty not in EMPTY_POLICIES:
        raise InputError(f"empty={empty!r} is unknown; known: {', '.join(EMPTY_POLICIES)}")
    check_options(rule, k=k, temperature=temperature, r_max=r_max, threshold=threshold, copies_of=copies_of)
    kept = reward_filter(
        rewards,
        "top_k" if rule == "best_of_n" else rule,
        k=_check_k(k, rewards, offsets) if rule == "top_k" else 1,
        temperature=_check_temperature(temperature) if rule == "classical" else 1.0,
        r_max=None if r_max is None else _of_groups(r_max, rewards, offsets),
        threshold=0.5 if threshold is None else threshold,
        copies_of=copies_of,
        offsets=offsets,
        sample_id=sample_id,
        seed=seed,
        step=step_word(draw, Stream.ACCEPTANCE),
        best_if_empty=empty == "best",
    )
    if empty == "raise" and bool((kept.group_count == 0).any()):
        group = int((kept.group_count == 0).nonzero()[0])
        raise InputError(f"group {group} has no acceptable candidate (rule {rule})")
    return Acceptance(kept.mask, kept.group_count, kept.packed, kept.count)


_TAKES: dict[str, set[str]] = {
    "top_k": {"k"},
    "best_of_n": set(),
    "classical": {"temperature", "r_max"},
    "threshold": {"threshold"},
    "preference": set(),
    "binary": {"threshold", "copies_of"},
}


_NEEDS = {"classical": "temperature", "threshold": "threshold"}


def check_options(rule: str, **options: object) -> None:
    """Raise InputError where an option that is not None has no meaning for the rule, or one is missing."""
    for name in (name for name, value in options.items() if value is not None):
        if name not in _TAKES[rule]:
            raise InputError(f"{name}= has no meaning for rule {rule!r}")
    needed = _NEEDS.get(rule)
    if needed is not None and options.get(needed) is None:
        raise InputError(f"rule {rule!r} needs {needed}=")


def _check_temperature(temperature: float | None) -> float:
    if temperature is None or not temperature > 0:
        raise InputError(f"temperature={temperature}: it must be above 0")
    return temperature


def _check_k(k: int | None, rewards: Tensor, offsets: Tensor | None) -> int:
    """Every group has k candidates."""
    if not isinstance(k, int) or k < 1:
        raise InputError(f"k={k}: rule 'top_k' needs a whole number of at least 1")
    if offsets is None:
        if isinstance(rewards, Tensor) and rewards.ndim == 2 and k > rewards.shape[1]:
            raise InputError(f"k={k} is more than the {rewards.shape[1]} candidates of a group")
        return k
    lengths = torch.as_tensor(offsets).diff()
    if bool((lengths >= 0).all()) and bool((lengths < k).any()):
        group = int((lengths < k).nonzero()[0])
        raise InputError(f"k={k} is more than the {int(lengths[group])} candidates of group {group}")
    return k


def _of_groups(r_max: float | Tensor, rewards: Tensor, offsets: Tensor | None) -> Tensor:
    """(P,) float64."""
    groups = rewards.shape[0] if offsets is None else torch.as_tensor(offsets).shape[0] - 1
    value = torch.as_tensor(r_max, dtype=torch.float64, device=rewards.device).flatten()
    return value.expand(groups).contiguous() if value.numel() == 1 else value
