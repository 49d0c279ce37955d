"""Several rewards as one."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.rewards.protocol import MAX_INVALID_SHARE, as_call, evaluate


class WeightedSum:
    """sum_i w_i reward_i; nan where a part is nan.

    parts: (reward, weight) by name, at least one. Raises InputError.
    """

    def __init__(self, parts: dict[str, tuple[Callable[..., object], float]]) -> None:
        if not parts:
            raise InputError("rewards is empty: give at least one")
        self._parts = [(name, as_call(reward), weight) for name, (reward, weight) in parts.items()]
        self._rewards = [reward for reward, _ in parts.values()]
        self.max_invalid_share = max(getattr(r, "max_invalid_share", MAX_INVALID_SHARE) for r in self._rewards)
        self.name = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, _, weight in self._parts)

    def __call__(
        self,
        samples: Tensor,
        prompts: Sequence[str],
        sample_ids: Sequence[int] | None = None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """(B,) float32 on the samples' device. Raises what its parts raise."""
        ids = range(samples.shape[0]) if sample_ids is None else sample_ids
        parts = [weight * evaluate(call, name, samples, prompts, ids, on_wait) for name, call, weight in self._parts]
        return torch.stack(parts).sum(dim=0)

    def close(self) -> None:
        """Close the parts that can be closed."""
        for reward in self._rewards:
            getattr(reward, "close", lambda: None)()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
