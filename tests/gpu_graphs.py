"""What tests of CUDA graphs begin with."""

import os

import pytest
import torch

from pgraft_fast.errors import BackendError
from pgraft_fast.ops.nvcc import find_nvcc
from pgraft_fast.sampling import graphs


def skip_without_loops():
    """Skip the module where loops in graphs cannot run."""
    if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("needs a GPU, and TRITON_INTERPRET=0: make test-gpu", allow_module_level=True)
    try:
        find_nvcc()
    except BackendError as reason:
        pytest.skip(str(reason), allow_module_level=True)


@pytest.fixture(autouse=True)
def own_failures(monkeypatch):
    """A capture that fails ends graphs for the process: each test has its own."""
    monkeypatch.setattr(graphs, "_failed", [])
