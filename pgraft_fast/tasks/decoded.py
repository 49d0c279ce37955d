"""A reward of what samples are decoded to, as one of the samples."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards.protocol import MAX_INVALID_SHARE, as_call, finite_rows, name_of, of_samples
from pgraft_fast.rewards.returned import as_numbers

Decode = Callable[[Tensor, Sequence[str]], tuple[Tensor, Sequence[str]]]


class DecodedReward:
    """decode(samples, prompts): what the reward gets of both. drops: samples with nan or inf, which a decoded picture
    does not show, get nan; else they end the run.
    """

    def __init__(self, reward: Callable[..., object], decode: Decode, drops: bool = False) -> None:
        self._reward, self._call, self._decode, self._drops = reward, as_call(reward), decode, drops
        self.name = name_of(reward)
        self.max_invalid_share = float(getattr(reward, "max_invalid_share", MAX_INVALID_SHARE))

    def __call__(
        self, samples: Tensor, prompts: Sequence[str], sample_ids: Sequence[int],
        on_wait: Callable[[], None] = lambda: None,
    ) -> object:  # fmt: skip
        """(B,) of samples (B, ...). Raises RewardError."""
        rows, others = finite_rows(samples)
        if not others:
            return self._call(*self._decode(samples, prompts), sample_ids, on_wait)
        if not self._drops:
            bad = of_samples([sample_ids[row] for row in others])
            raise RewardError(
                f"reward {self.name!r} was not asked about {bad}: the model drew nan or inf; look at its precision, or "
                'set policy.on_failure = "drop"'
            )
        rewards = torch.full((len(samples),), torch.nan, device=samples.device)
        if rows:
            media, texts = self._decode(samples[rows], [prompts[row] for row in rows])
            values = self._call(media, texts, [sample_ids[row] for row in rows], on_wait)
            rewards[rows] = as_numbers(values).to(rewards)
        return rewards
