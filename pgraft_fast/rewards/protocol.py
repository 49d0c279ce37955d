"""What a reward is, and how its answers are checked."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pgraft_fast.errors import RewardError

MAX_INVALID_SHARE = 0.05


class Reward(Protocol):
    """reward(samples, prompts) -> one number a sample; higher is better, nan marks a sample that has none.

    samples: (B, ...) final samples. prompts: B strings. Returns B numbers: tensor, array or list.
    """

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor: ...


def as_reward(function: Callable[..., object]) -> Callable[[Tensor, Sequence[str]], object]:
    """A callable of one argument (samples) or two (samples, prompts) as a reward of two."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return function
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_rest = any(p.kind == p.VAR_POSITIONAL for p in parameters)
    if takes_rest or len(positional) >= 2:
        return function
    return lambda samples, prompts: function(samples)


def name_of(reward: Callable[..., object]) -> str:
    """A name for messages."""
    return str(getattr(reward, "name", getattr(reward, "__name__", type(reward).__name__)))


def score(
    reward: Callable[..., object],
    samples: Tensor,
    prompts: Sequence[str],
    sample_id: Tensor,
    batch_size: int = 256,
    on_batch: Callable[[], None] | None = None,
) -> Tensor:
    """Rewards of all samples, (n,) float32 on the samples' device; nan where the reward gave none.

    Raises RewardError, in one line, where the reward raises, returns another number of values, or leaves more than
    5 % of the samples without a finite one.
    """
    call, name = as_reward(reward), name_of(reward)
    parts = []
    with torch.no_grad():
        for low in range(0, samples.shape[0], batch_size):
            batch = samples[low : low + batch_size]
            first, last = int(sample_id[low]), int(sample_id[low + batch.shape[0] - 1])
            parts.append(_one_batch(call, name, batch, prompts[low : low + batch_size], f"samples {first} to {last}"))
            if on_batch is not None:
                on_batch()
    rewards = torch.cat(parts)
    invalid = ~torch.isfinite(rewards)
    n_invalid = int(invalid.sum())
    if n_invalid > MAX_INVALID_SHARE * rewards.numel():
        first = int(sample_id[invalid.nonzero()[0, 0]])
        raise RewardError(
            f"reward {name!r} gave no finite number for {n_invalid} of {rewards.numel()} samples "
            f"(the first is sample {first}); at most {math.floor(100 * MAX_INVALID_SHARE)} % may fail"
        )
    return torch.where(invalid, torch.full_like(rewards, torch.nan), rewards)


def _one_batch(
    call: Callable[[Tensor, Sequence[str]], object],
    name: str,
    batch: Tensor,
    prompts: Sequence[str],
    where: str,
) -> Tensor:
    try:
        values = call(batch, prompts)
    except Exception as error:
        text = " ".join(str(error).split())
        raise RewardError(f"reward {name!r} raised {type(error).__name__}: {text} (at {where})") from error
    try:
        rewards = torch.as_tensor(values, dtype=torch.float32, device=batch.device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(f"reward {name!r} returned {type(values).__name__}, not numbers (at {where})") from error
    if rewards.shape != (batch.shape[0],):
        raise RewardError(
            f"reward {name!r} returned shape {tuple(rewards.shape)} for {batch.shape[0]} samples; "
            f"it must be ({batch.shape[0]},) (at {where})"
        )
    return rewards
