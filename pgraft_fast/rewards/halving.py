"""Which samples of a batch make a reward fail."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards.protocol import RewardMisuseError, RewardTimeoutError

MAX_CALLS = 64


def rewards_of_the_rest(ask: Callable[[Sequence[int], float], Tensor], count: int, seconds: float) -> Tensor:
    """(count,) float32 of a batch that failed as a whole: nan for samples that fail, or that were not reached.

    ask(rows, seconds) gives the rewards of some rows or raises RewardError. Parts that fail are halved, the widest
    first, until single samples are left; at most 64 calls are made within `seconds`, and none after one that hangs.
    """
    rewards = torch.full((count,), math.nan)
    deadline = time.monotonic() + seconds
    failed, calls = deque([range(count)]), 0
    while failed:
        rows = failed.popleft()
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            left = deadline - time.monotonic()
            if len(rows) == 1 or left <= 0 or calls == MAX_CALLS:
                break
            calls += 1
            try:
                values = ask(half, left).cpu()
                rewards[half.start : half.stop] = torch.where(torch.isfinite(values), values, torch.nan)
            except (RewardTimeoutError, RewardMisuseError):
                return rewards
            except RewardError:
                failed.append(half)
    return rewards
