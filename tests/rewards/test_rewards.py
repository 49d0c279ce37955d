"""Rewards: values, and what happens to bad ones."""

import numpy as np
import pytest
import torch

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards import load_reward, name_of, score, stroke_mass, symmetry

SAMPLES = torch.zeros(6, 1, 4, 4)
IDS = torch.arange(100, 106)
PROMPTS = list("abcdef")


def test_symmetry():
    image = torch.rand(3, 1, 8, 8) * 2 - 1
    mirrored = 0.5 * (image + image.flip(-1))
    assert torch.allclose(symmetry(mirrored), torch.ones(3))
    half = torch.cat((torch.ones(1, 1, 8, 4), -torch.ones(1, 1, 8, 4)), dim=3)
    assert float(symmetry(half)) == 0.0
    assert float(symmetry(100 * half)) == 0.0


def test_stroke_mass():
    assert stroke_mass(torch.stack((-torch.ones(1, 2, 2), torch.ones(1, 2, 2), torch.zeros(1, 2, 2)))).tolist() == [
        0,
        1,
        0.5,
    ]


@pytest.mark.parametrize(
    "reward",
    [
        lambda samples: samples.flatten(1).mean(1),
        lambda samples, prompts: [float(len(p) - 1) for p in prompts],
        lambda *everything: np.zeros(len(everything[1])),
    ],
)
def test_any_callable(reward):
    rewards = score(reward, SAMPLES, PROMPTS, IDS, batch_size=4)
    assert rewards.tolist() == [0.0] * 6
    assert rewards.dtype == torch.float32


def test_batches_and_prompts_stay_together():
    seen = []

    def reward(samples, prompts):
        seen.append((len(samples), list(prompts)))
        return torch.zeros(len(samples))

    score(reward, SAMPLES, PROMPTS, IDS, batch_size=4)
    assert seen == [(4, list("abcd")), (2, list("ef"))]


def test_a_few_invalid_samples_are_marked():
    values = torch.arange(40.0)
    values[[3, 7]] = torch.tensor([float("nan"), float("inf")])
    rewards = score(lambda x: values, torch.zeros(40, 1), [""] * 40, torch.arange(40))
    assert torch.isnan(rewards).nonzero().flatten().tolist() == [3, 7]
    assert torch.equal(rewards[8:], values[8:])


def raises(samples):
    raise OSError("the scorer\nis gone")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (raises, r"reward 'raises' raised OSError: the scorer is gone \(at samples 100 to 103\)"),
        (lambda x: torch.zeros(len(x), 1), r"returned shape \(4, 1\) for 4 samples; it must be \(4,\)"),
        (lambda x: torch.tensor(1.0), r"returned shape \(\) for 4 samples"),
        (lambda x: None, "returned NoneType, not numbers"),
        (lambda x: ["good"] * len(x), "returned list, not numbers"),
        (lambda x: [float("nan")] * len(x), r"no finite number for 6 of 6 samples \(the first is sample 100\)"),
    ],
)
def test_bad_rewards(reward, message):
    with pytest.raises(RewardError, match=message):
        score(reward, SAMPLES, PROMPTS, IDS, batch_size=4)


def test_loading(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def good(x):\n    return x.flatten(1).sum(1)\nnumber = 3\n")
    reward = load_reward(f"{file}:good")
    assert name_of(reward) == "good"
    assert float(reward(torch.ones(1, 2, 2))[0]) == 4.0
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    for spec, message in [
        ("mine.py", "expected file.py:function"),
        (f"{tmp_path}/none.py:f", "there is no file"),
        (f"{file}:other", "has no function 'other'"),
        (f"{file}:number", "has no function 'number'"),
        (f"{tmp_path}/broken.py:f", "raised ModuleNotFoundError"),
    ]:
        with pytest.raises(RewardError, match=message):
            load_reward(spec)


def test_a_batch_that_does_not_fit_is_halved():
    asked = []

    def reward(x):
        asked.append(len(x))
        if len(x) > 4:
            torch.empty(len(x) << 58, dtype=torch.uint8)
        return x.sum(1)

    x = torch.arange(12.0).view(12, 1)
    assert torch.equal(score(reward, x, [""] * 12, torch.arange(12), batch_size=12), x.sum(1))
    assert asked == [12, 6, 3, 3, 3, 3]
