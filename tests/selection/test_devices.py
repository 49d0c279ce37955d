"""Ids of the host beside rewards on CUDA: a whole run's evaluation has both."""

import importlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pgraft_fast.ops import reward_filter


@pytest.mark.parametrize("name", ["sample_id", "copies_of"])
def test_ids_are_brought_to_the_rewards(name, monkeypatch):
    """A kernel that was given an address of the host was refused by Triton at the end of a run on an H200."""
    operation = importlib.import_module("pgraft_fast.ops.reward_filter")
    tensors, own = [], operation._op

    def op(*arguments):
        tensors.extend(value for value in arguments if isinstance(value, torch.Tensor))
        return own(*arguments)

    monkeypatch.setattr(operation, "_op", op)
    with FakeTensorMode() as mode:
        rewards = torch.empty(4, 3, device="cuda")
        ids = mode.from_tensor(torch.arange(12).view(4, 3))
        kept = reward_filter(rewards, "top_k", k=2, **{name: ids})
    assert len(tensors) == 2 and all(value.device.type == "cuda" for value in (*tensors, kept.mask))
