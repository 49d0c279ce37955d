"""Noise streams."""

import pytest
import torch

from pgraft_fast.diffusion import Stream, normal, uniform
from pgraft_fast.errors import InputError


def test_streams_and_steps_differ():
    ids = torch.arange(8)
    draws = [normal(5, ids, step, (4, 4), stream) for stream in Stream for step in (0, 1)]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert not torch.equal(a, b)


def test_shapes():
    ids = torch.arange(3)
    assert normal(0, ids, 2, (1, 5)).shape == (3, 1, 5)
    several = normal(0, ids, torch.arange(4)[:, None], (1, 5))
    assert several.shape == (4, 3, 1, 5)
    assert torch.equal(several[2], normal(0, ids, 2, (1, 5)))
    draws = uniform(0, ids, 2, Stream.ACCEPTANCE)
    assert draws.shape == (3,)
    assert draws.dtype == torch.float64


@pytest.mark.parametrize("step", [-1, 1 << 24])
def test_step_outside_the_word(step):
    with pytest.raises(InputError, match="outside"):
        normal(0, torch.arange(2), step, (3,))
