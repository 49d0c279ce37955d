"""Which pictures count as the same: against a loop, on digits and on scenes."""

import numpy as np
import torch
from denoisers import TEXTS
from pipelines import build
from scipy.fft import dct

import pgraft_fast as pf
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast.tasks.digits.data import load_digits
from pgraft_fast.tasks.perceptual import perceptual_hash
from pgraft_fast.tasks.pipeline import pipeline_task
from pgraft_fast.tasks.shapes.prompts import train_prompts
from pgraft_fast.tasks.shapes.render import render

RANDOM = np.random.default_rng(0)


def smooth(n, side):
    """Pictures of 100 waves, any side."""
    y, x = np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2, indexing="ij")
    waves = RANDOM.normal(size=(n, 10, 10)) / (1 + np.add.outer(np.arange(10), np.arange(10)))
    basis = [np.cos(np.pi * i * y)[None] * np.cos(np.pi * j * x)[None] for i in range(10) for j in range(10)]
    values = np.tensordot(waves.reshape(n, 100), np.concatenate(basis), axes=1)
    return np.clip(128 + 40 * values, 0, 255).astype(np.uint8)


def test_against_a_loop():
    pictures = smooth(20, 32)
    for picture, number in zip(pictures, perceptual_hash(pictures).tolist(), strict=True):
        waves = dct(dct(picture.astype(np.float32), axis=0, norm="ortho"), axis=1, norm="ortho")[:8, :8].flatten()[1:]
        middle = np.sort(waves)[31]
        assert number == sum(1 << place for place, wave in enumerate(waves) if wave > middle)


def test_what_looks_the_same():
    scenes = (127.5 * (render(train_prompts()[:300], seed=1) + 1.0)).round().byte().permute(0, 2, 3, 1).numpy()
    numbers = perceptual_hash(scenes)
    assert numbers.unique().numel() == 300
    larger = scenes.repeat(2, axis=1).repeat(2, axis=2)
    assert torch.equal(perceptual_hash(larger), numbers)
    darker = (scenes // 2).astype(np.uint8)
    noisy = np.clip(scenes + RANDOM.integers(-2, 3, scenes.shape), 0, 255).astype(np.uint8)
    for other in (darker, noisy):
        assert float((perceptual_hash(other) == numbers).float().mean()) > 0.8


def test_digits():
    task, images = digits_task(DigitsSettings()), load_digits("train").images
    numbers = task.prompts.same(images, None)
    assert numbers.unique().numel() == len(images) and torch.equal(task.prompts.same(images[:9], None), numbers[:9])


def test_a_pipeline_looks_at_its_pictures():
    facts = facts_of(Calls(build("sd"), TEXTS, {"height": 16, "width": 16}, guidance=3.0))
    task, _ = pipeline_task(facts, TEXTS[:2], TEXTS[2:], pf.Lora(rank=2), 0)
    states = torch.randn(3, *task.shape)
    states = torch.cat((states, states[:1] + 1e-6))
    numbers = task.prompts.same(states, torch.zeros(4, dtype=torch.int64))
    assert numbers[0] == numbers[3] and numbers[:3].unique().numel() == 3
    assert torch.equal(numbers, perceptual_hash(task.pictures(states, None)))
