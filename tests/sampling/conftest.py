"""Captures without CUDA."""

import pytest
import torch
from cuda_stand_in import Cuda

from pgraft_fast.sampling import graphs


@pytest.fixture
def cuda(monkeypatch):
    stand_in = Cuda()
    for name in dir(stand_in):
        if not name.startswith("_") and hasattr(torch.cuda, name):
            monkeypatch.setattr(torch.cuda, name, getattr(stand_in, name))
    monkeypatch.setattr(graphs, "_side_streams", {})
    monkeypatch.setattr(graphs, "_failed", [])
    return stand_in
