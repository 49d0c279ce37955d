"""Acceptance rules on many short groups at once.

All rules share one total order, (reward descending, sample id ascending), and never keep a reward that is not finite.
What each rule keeps is told in `selection.accept`; `selection.laws` has their laws in closed form.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.ops.backend import launcher
from pgraft_fast.ops.groups import Groups
from pgraft_fast.ops.philox import philox_words, signed, words_to_uniform
from pgraft_fast.ops.registration import register, traced

FILTER_RULES = ("top_k", "classical", "threshold", "preference", "binary")
_USUAL_WIDTH = 1024


@dataclass(frozen=True)
class Filtered:
    """What was kept.

    mask: bool, the shape of the rewards. group_count: (P,) int64, kept in each group. packed: (capacity,) int64, flat
    indices of the kept candidates in rising order, then -1. count: () int64, kept in all.
    """

    mask: Tensor
    group_count: Tensor
    packed: Tensor
    count: Tensor


def reward_filter(
    rewards: Tensor,
    rule: str,
    *,
    k: int = 1,
    temperature: float = 1.0,
    r_max: Tensor | None = None,
    threshold: float = 0.0,
    copies_of: Tensor | None = None,
    offsets: Tensor | None = None,
    sample_id: Tensor | None = None,
    seed: int = 0,
    step: int = 0,
    best_if_empty: bool = False,
    capacity: int | None = None,
) -> Filtered:
    """Choose candidates in every group; nothing is read back to the host.

    rewards: (P, N), or (M,) with offsets (P + 1,) int64 rising from 0 to M (not checked on a GPU). float32 or
    float64; narrower ones are widened.
    rule: one of `FILTER_RULES`. k: top_k. temperature, r_max (P,) float64, seed, step (32 bits): classical; threshold:
    threshold, binary; copies_of (int64, shape of rewards): binary.
    sample_id: int64, shape of rewards, default 0, 1, 2 ... capacity: length of `packed`, by default enough for all that
    the rule can keep. Raises InputError.
    """
    if rule not in FILTER_RULES:
        raise InputError(f"rule={rule!r} is unknown; known: {', '.join(FILTER_RULES)}")
    if not isinstance(rewards, Tensor):
        raise InputError(f"rewards must be a tensor, got {type(rewards).__name__}")
    if rewards.dtype not in (torch.float32, torch.float64):
        rewards = rewards.to(torch.float32)
    if offsets is None and (rewards.ndim != 2 or rewards.shape[1] == 0):
        raise InputError(f"rewards must be (P, N), or (M,) with offsets; got {tuple(rewards.shape)}")
    if offsets is not None:
        offsets = _check_offsets(offsets, rewards)
    for name, value in (("sample_id", sample_id), ("copies_of", copies_of)):
        if value is not None and value.shape != rewards.shape:
            shape, wanted = tuple(value.shape), tuple(rewards.shape)
            raise InputError(f"{name} has shape {shape}, rewards {wanted}: they must agree")
    groups = rewards.shape[0] if offsets is None else offsets.shape[0] - 1
    if r_max is not None and r_max.shape != (groups,):
        raise InputError(f"r_max has shape {tuple(r_max.shape)}: ({groups},) is needed")
    if capacity is None:
        capacity = _most_kept(rewards, rule, k, groups, offsets is not None)
    call = _op if traced(rewards, offsets) else _run
    return Filtered(
        *call(
            rewards, offsets, None if sample_id is None else sample_id.to(rewards.device, torch.int64),
            None if copies_of is None else copies_of.to(rewards.device, torch.int64),
            None if r_max is None else r_max.to(rewards.device, torch.float64),
            FILTER_RULES.index(rule), k, temperature, threshold, best_if_empty, signed(seed), step, capacity,
        )
    )  # fmt: skip


def _check_offsets(offsets: Tensor, rewards: Tensor) -> Tensor:
    offsets = torch.as_tensor(offsets, dtype=torch.int64)
    total = rewards.numel()
    wrong = rewards.ndim != 1 or total == 0 or offsets.ndim != 1 or offsets.numel() < 2
    if not wrong and offsets.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = int(offsets[0]) != 0 or int(offsets[-1]) != total or bool((offsets.diff() < 0).any())
    if wrong:
        raise InputError(f"offsets must rise from 0 to {total}, the number of rewards, in one dimension")
    return offsets.to(rewards.device)


def _most_kept(rewards: Tensor, rule: str, k: int, groups: int, ragged: bool) -> int:
    total = rewards.numel()
    if rule == "top_k":
        return min(total, groups * k)
    if rule == "preference":
        return total if ragged else groups * max(1, rewards.shape[1] // 2)
    return total


def _run(
    rewards: Tensor,
    offsets: Tensor | None,
    sample_id: Tensor | None,
    copies_of: Tensor | None,
    r_max: Tensor | None,
    rule: int,
    k: int,
    temperature: float,
    threshold: float,
    best_if_empty: bool,
    seed: int,
    step: int,
    capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # float64 rewards need no reference: the kernels compare them as they are.
    launch = launcher("reward_filter", rewards if rewards.dtype is torch.float32 else rewards.view(torch.int64))
    if launch is None:
        kept, group_count = _reference(
            rewards, offsets, sample_id, copies_of, r_max, rule, k, temperature, threshold, best_if_empty, seed, step
        )
        index = torch.nonzero_static(kept.flatten(), size=capacity, fill_value=-1).squeeze(1)
        return kept, group_count, index, group_count.sum()
    rewards = rewards.contiguous()
    groups = rewards.shape[0] if offsets is None else offsets.shape[0] - 1
    # Of unequal groups the longest is not known here; the kernels take longer ones too, in a pass of their own.
    width = rewards.shape[1] if offsets is None else min(_USUAL_WIDTH, rewards.numel())
    mask = torch.empty(rewards.shape, dtype=torch.bool, device=rewards.device)
    group_count, index, count = (
        torch.empty(shape, dtype=torch.int64, device=rewards.device) for shape in ((groups,), (capacity,), ())
    )
    sample_id, copies_of = (None if value is None else value.contiguous() for value in (sample_id, copies_of))
    launch(
        rewards, offsets, sample_id, copies_of, r_max, groups, width, rule, k, temperature, threshold,
        int(best_if_empty), seed, step, mask, group_count, index, count,
    )  # fmt: skip
    return mask, group_count, index, count


def _reference(
    rewards: Tensor,
    offsets: Tensor | None,
    sample_id: Tensor | None,
    copies_of: Tensor | None,
    r_max: Tensor | None,
    rule: int,
    k: int,
    temperature: float,
    threshold: float,
    best_if_empty: bool,
    seed: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    groups = Groups.of(rewards, offsets, sample_id)
    match FILTER_RULES[rule]:
        case "top_k":
            kept = groups.rank() < k
        case "classical":
            kept = _classical(groups, temperature, r_max, seed, step)
        case "threshold":
            kept = groups.reward >= threshold
        case "preference":
            kept = _preference(groups)
        case _:
            kept = _distinct(groups, groups.reward >= threshold, copies_of)
    kept = kept & groups.valid
    if best_if_empty:
        kept = kept | (~kept.any(dim=1, keepdim=True) & groups.valid & (groups.rank() == 0))
    return groups.restore(kept), kept.sum(dim=1)


def _classical(groups: Groups, temperature: float, r_max: Tensor | None, seed: int, step: int) -> Tensor:
    reward = groups.reward.to(torch.float64)
    top = reward.amax(dim=1, keepdim=True) if r_max is None else r_max.view(-1, 1)
    words = philox_words(seed, groups.sample_id.flatten(), torch.tensor([step], device=reward.device), 1)
    return words_to_uniform(words).view_as(reward) < torch.exp((reward - top) / temperature)


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
    key = groups.align(copies_of)
    positive = positive & groups.valid
    # Sorted by (positive first, key, sample id), a copy stands right behind its like.
    order = torch.argsort(groups.sample_id, dim=1, stable=True)
    order = order.gather(1, torch.argsort(key.gather(1, order), dim=1, stable=True))
    order = order.gather(1, torch.argsort((~positive).gather(1, order).to(torch.uint8), dim=1, stable=True))
    sorted_key, sorted_positive = key.gather(1, order), positive.gather(1, order)
    fresh = sorted_positive.clone()
    fresh[:, 1:] &= sorted_key[:, 1:] != sorted_key[:, :-1]
    return torch.zeros_like(positive).scatter(1, order, fresh)


def _fake(rewards: Tensor, offsets: Tensor | None, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    groups = rewards.shape[0] if offsets is None else offsets.shape[0] - 1
    return (
        rewards.new_empty(rewards.shape, dtype=torch.bool),
        rewards.new_empty(groups, dtype=torch.int64),
        rewards.new_empty(args[-1], dtype=torch.int64),
        rewards.new_empty((), dtype=torch.int64),
    )


_op = register(
    "reward_filter(Tensor rewards, Tensor? offsets, Tensor? sample_id, Tensor? copies_of, Tensor? r_max, int rule, "
    "int k, float temperature, float threshold, bool best_if_empty, int seed, int step, SymInt capacity) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
