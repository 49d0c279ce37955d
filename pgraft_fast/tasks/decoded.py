"""A reward of what samples are decoded to, as one of the samples."""

from collections.abc import Callable, Sequence

from torch import Tensor

from pgraft_fast.rewards.protocol import MAX_INVALID_SHARE, as_call, name_of

Decode = Callable[[Tensor, Sequence[str]], tuple[Tensor, Sequence[str]]]


class DecodedReward:
    """decode(samples, prompts): what the reward gets of both."""

    def __init__(self, reward: Callable[..., object], decode: Decode) -> None:
        self._reward, self._call, self._decode = reward, as_call(reward), decode
        self.name = name_of(reward)
        self.max_invalid_share = float(getattr(reward, "max_invalid_share", MAX_INVALID_SHARE))

    def __call__(
        self, samples: Tensor, prompts: Sequence[str], sample_ids: Sequence[int],
        on_wait: Callable[[], None] = lambda: None,
    ) -> object:  # fmt: skip
        """(B,) of samples (B, ...)."""
        return self._call(*self._decode(samples, prompts), sample_ids, on_wait)
