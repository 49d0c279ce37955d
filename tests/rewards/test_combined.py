"""Weighted sums, and the rewards that need nothing but a picture."""

import io

import pytest
import torch
from PIL import Image
from reward_models import as_pil, pictures

from pgraft_fast.errors import InputError, RewardError
from pgraft_fast.rewards import PolicedReward, Policy, WeightedSum, score
from pgraft_fast.rewards.jpeg import JpegSize

SAMPLES = torch.arange(6.0).view(6, 1)


class Part:
    def __init__(self, values):
        self.values, self.closed = values, 0

    def __call__(self, samples, prompts, sample_ids):
        return [self.values[int(i)] for i in samples[:, 0]]

    def close(self):
        self.closed += 1


def test_weighted_sum():
    first, second = Part([1, 2, 3, 4, 5, 6]), Part([0.5, 0, 0, 0, 0, -1])
    with WeightedSum({"first": (first, 1.0), "second": (second, -2.0), "third": (lambda x: x[:, 0], 0.5)}) as reward:
        rewards = score(reward, SAMPLES, [""] * 6, torch.arange(6), batch_size=4)
        assert rewards.tolist() == [0.0, 2.5, 4.0, 5.5, 7.0, 10.5]
    assert (first.closed, second.closed) == (1, 1)
    assert reward.name == "first + -2 second + 0.5 third"
    with pytest.raises(InputError, match="rewards is empty: give at least one"):
        WeightedSum({})


def test_parts_that_fail():
    good, holes = Part([1.0] * 6), Part([1.0, float("nan"), 1.0, 1.0, 1.0, 1.0])
    policed = PolicedReward(holes, Policy("drop", max_dropped_share=0.5), name="holes", log=lambda line: None)
    reward = WeightedSum({"good": (good, 1.0), "holes": (policed, 1.0)})
    rewards = score(reward, SAMPLES, [""] * 6, torch.arange(6))
    assert torch.isnan(rewards).tolist() == [False, True, False, False, False, False]
    message = "reward 'holes' gave no finite number for sample 1, tried 3 times; mend the reward"
    policed = PolicedReward(holes, name="holes", log=lambda line: None)
    with pytest.raises(RewardError, match=message):
        score(WeightedSum({"good": (good, 1.0), "holes": (policed, 0.0)}), SAMPLES, [""] * 6, torch.arange(6))
    with pytest.raises(
        RewardError, match=r"reward 'bad' raised ZeroDivisionError: division by zero \(at samples 0 to 5\)"
    ):
        score(WeightedSum({"bad": (lambda x: 1 / 0, 1.0)}), SAMPLES, [""] * 6, torch.arange(6))


def test_samples_that_are_no_pictures():
    message = r"^reward 'sizes': samples of shape \(6, 1\) are no pictures: .* \(at samples 0 to 5\)$"
    for reward in (PolicedReward(JpegSize(), Policy("drop"), name="sizes"), WeightedSum({"sizes": (JpegSize(), 1.0)})):
        with pytest.raises(RewardError, match=message):
            score(reward, SAMPLES, [""] * 6, torch.arange(6))


def test_jpeg_size():
    samples = pictures(3, 24, 40)
    samples[1] = 0.0
    expected = []
    for picture in as_pil(samples):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=95)
        expected.append(buffer.tell() / 1000)
        assert Image.open(buffer).size == (40, 24)
    assert JpegSize()(samples).tolist() == torch.tensor(expected).tolist()
    assert torch.equal(JpegSize(small=True)(samples, [""] * 3), -JpegSize()(samples))
    assert expected[1] < min(expected[0], expected[2])
    assert JpegSize().name == "jpeg_incompressibility" and JpegSize(small=True).name == "jpeg_compressibility"
