"""The rewards of a run as a user gives them: functions, objects of the protocol, files, or lists of these."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from pgraft_fast.errors import InputError
from pgraft_fast.finetune.identity import sha256_of
from pgraft_fast.rewards import PolicedReward, Policy, WeightedSum, load_reward, name_of

Rewards = Callable[..., object] | str | Sequence[Any]


def reward_parts(reward: Rewards) -> list[tuple[Callable[..., object], float]]:
    """(reward, weight) of each. Raises InputError."""
    if isinstance(reward, str):
        return [(load_reward(reward), 1.0)]
    if callable(reward):
        return [(reward, 1.0)]
    if not isinstance(reward, (list, tuple)) or not reward:
        what = type(reward).__name__
        raise InputError(f"reward: {what} is neither a function, nor file.py:function, nor a list of these")
    parts: list[tuple[Callable[..., object], float]] = []
    for entry in reward:
        pair = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, 1.0)
        if isinstance(pair[0], (list, tuple)) or not isinstance(pair[1], (int, float)):
            raise InputError("reward: a list holds rewards, or pairs of a reward and its weight")
        parts += [(part, float(pair[1])) for part, _ in reward_parts(pair[0])]
    return parts


def weighted(
    reward: Rewards, policy: Policy, log: Callable[[str], None],
    made: Callable[[Callable[..., object]], Callable[..., object]] = lambda part: part,
) -> WeightedSum:  # fmt: skip
    """Their sum, each under the policy. made: what is called in the place of each."""
    parts: dict[str, tuple[Callable[..., object], float]] = {}
    for part, weight in reward_parts(reward):
        name = name_of(part)
        while name in parts:
            name += "_2"
        parts[name] = (PolicedReward(made(part), policy, name=name, check_order=True, log=log), weight)
    return WeightedSum(parts)


def reward_codes(reward: Rewards) -> list[dict[str, str]]:
    """Each by its name and the text of its code, as far as that is at hand."""
    return [_code(part) for part, _ in reward_parts(reward)]


def _code(reward: Callable[..., object]) -> dict[str, str]:
    try:
        text = inspect.getsource(reward if inspect.isroutine(reward) else type(reward))
    except (OSError, TypeError):
        text = ""
    return {"name": name_of(reward), "code": sha256_of(text)}
