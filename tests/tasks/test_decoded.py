"""Rewards of what samples are decoded to, and samples that are no numbers."""

import pytest
import torch

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards import score
from pgraft_fast.tasks.decoded import DecodedReward

PROMPTS = ["a", "b", "c", "d"]


class Mean:
    """Of pictures in bytes, in which nan is 0."""

    name = "mean"
    max_invalid_share = 0.5

    def __init__(self):
        self.calls = []

    def __call__(self, media, prompts, sample_ids):
        self.calls.append((media.dtype, list(prompts), list(sample_ids)))
        return media.float().flatten(1).mean(dim=1)


def decode(samples, prompts):
    return (100 * samples.nan_to_num(0.0, 0.0, 0.0)).to(torch.uint8), [prompt.upper() for prompt in prompts]


def samples_with(*values):
    samples = torch.ones(4, 2, 2)
    for row, value in values:
        samples[row, 0, 1] = value
    return samples


def test_finite_samples_are_decoded_together():
    inner = Mean()
    rewards = score(DecodedReward(inner, decode), samples_with(), PROMPTS, torch.arange(7, 11))
    assert rewards.tolist() == [100.0] * 4 and inner.calls == [(torch.uint8, ["A", "B", "C", "D"], [7, 8, 9, 10])]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_sample_that_is_no_number_ends_the_run(value):
    """Its picture would be one like others, and its state would be trained on."""
    inner = Mean()
    with pytest.raises(RewardError, match=r"'mean' was not asked about samples 8 to 9: the model drew nan or inf"):
        score(DecodedReward(inner, decode), samples_with((1, value), (2, value)), PROMPTS, torch.arange(7, 11))
    assert inner.calls == []


def test_or_is_dropped():
    inner = Mean()
    reward = DecodedReward(inner, decode, drops=True)
    rewards = score(reward, samples_with((1, float("nan")), (3, float("inf"))), PROMPTS, torch.arange(7, 11))
    assert rewards[[0, 2]].tolist() == [100.0, 100.0] and bool(rewards[[1, 3]].isnan().all())
    assert inner.calls == [(torch.uint8, ["A", "C"], [7, 9])]


def test_but_not_most_of_them():
    inner = Mean()
    bad = [(row, float("nan")) for row in range(4)]
    with pytest.raises(RewardError, match="no finite number for 4 of 4 samples"):
        score(DecodedReward(inner, decode, drops=True), samples_with(*bad), PROMPTS, torch.arange(4))
    assert inner.calls == []
