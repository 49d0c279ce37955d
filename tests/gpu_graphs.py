"""What tests of CUDA graphs begin with."""

import pytest

from pgraft_fast.sampling import graphs


@pytest.fixture(autouse=True)
def own_failures(monkeypatch):
    """A capture that fails ends graphs for the process: each test has its own."""
    monkeypatch.setattr(graphs, "_failed", [])
