"""DDPO's advantages: rewards normalised by prompt, against numpy."""

import json

import numpy as np
import pytest
import torch

from pgraft_fast.finetune.ddpo import PromptStatistics, advantages
from pgraft_fast.finetune.ddpo_settings import DdpoSettings


def test_statistics_against_numpy():
    """Three rounds; prompt 5 comes twice in the second, prompt 9 stays below the count."""
    settings = DdpoSettings(buffer_size=6, min_count=4, advantage_clip=1.2)
    statistics, memory = PromptStatistics(6), {}
    generator = np.random.default_rng(0)
    for prompts in ([5, 2], [5, 5], [2, 9]):
        rewards = generator.normal(size=(2, 3)).astype(np.float32)
        rewards[0, 1] = np.nan
        actual = advantages(torch.tensor(rewards), torch.tensor(prompts), statistics, settings)
        for prompt, row in zip(prompts, rewards, strict=True):
            memory[prompt] = (memory.get(prompt, []) + [float(r) for r in row if np.isfinite(r)])[-6:]
        for index, prompt in enumerate(prompts):
            known = np.array(memory[prompt] if len(memory[prompt]) >= 4 else rewards[np.isfinite(rewards)], np.float64)
            expected = (rewards[index] - known.mean()) / (known.std() + 1e-6)
            expected = np.where(np.isfinite(expected), expected.clip(-1.2, 1.2), 0.0)
            assert actual[index].numpy() == pytest.approx(expected, abs=1e-6)
    assert float(actual.abs().max()) == pytest.approx(1.2)


def test_global_statistics_against_numpy():
    rewards = torch.tensor([[1.0, 2.0, float("nan")], [4.0, float("inf"), 5.0]])
    statistics = PromptStatistics(32)
    actual = advantages(rewards, torch.tensor([0, 1]), statistics, DdpoSettings(statistics="global"))
    known = np.array([1.0, 2.0, 4.0, 5.0])
    expected = (known - 3.0) / (known.std() + 1e-6)
    assert actual.flatten()[[0, 1, 3, 5]].tolist() == pytest.approx(expected.tolist())
    assert actual[0, 2] == actual[1, 1] == 0.0
    assert statistics.state() == {}


def test_equal_rewards_have_no_advantage():
    for value in (0.1, 1e20, float("nan")):
        rewards = torch.full((2, 20), value)
        assert bool((advantages(rewards, torch.tensor([0, 1]), PromptStatistics(32), DdpoSettings()) == 0).all())


def test_statistics_go_on_after_a_resume():
    straight, first, resumed = (PromptStatistics(8) for _ in range(3))
    settings = DdpoSettings(buffer_size=8, min_count=4)
    rounds = [(torch.randn(3, 4), torch.tensor([0, 4, number])) for number in (1, 2, 3)]
    for rewards, prompts in rounds[:2]:
        advantages(rewards, prompts, straight, settings)
        advantages(rewards, prompts, first, settings)
    resumed.load(json.loads(json.dumps(first.state())))
    expected = advantages(*rounds[2], straight, settings)
    assert torch.equal(advantages(*rounds[2], resumed, settings), expected)
    assert resumed.state() == straight.state()
