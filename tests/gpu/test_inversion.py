"""Inversion as one CUDA graph: as without, for data that ask for more and for fewer iterations, by one graph."""

import os

import pytest
import torch
from gpu_graphs import own_failures  # noqa: F401
from torch import nn

import pgraft_fast as pf
from pgraft_fast.errors import BackendError
from pgraft_fast.inverse_noise import SOLVERS
from pgraft_fast.ops.nvcc import find_nvcc
from pgraft_fast.sampling import GraphCache
from pgraft_fast.tasks.digits.dequantised import dequantised, load_mlp_flow

if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a GPU, and TRITON_INTERPRET=0: make test-gpu", allow_module_level=True)
try:
    find_nvcc()
except BackendError as reason:
    pytest.skip(str(reason), allow_module_level=True)


class Steep(nn.Module):
    """v = -slope tanh(x)."""

    def __init__(self, slope):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x, t):
        return -self.slope * torch.tanh(x)


def alike(model, x, graphs, steps, **more):
    """With graphs as without, but for samples that stay in the batch."""
    one, other = (pf.invert(model, x, steps, graphs=cache, **more) for cache in (graphs, None))
    assert one.converged.tolist() == other.converged.tolist()
    torch.testing.assert_close(one.noise, other.noise, atol=3e-5, rtol=1e-4, equal_nan=True)
    assert one.contraction == pytest.approx(other.contraction, rel=2e-2)
    assert one.calls >= other.calls
    return one


@pytest.mark.parametrize("solver", SOLVERS)
def test_digits(solver):
    model, graphs = load_mlp_flow().cuda(), GraphCache()
    x = dequantised("held_out", 80, 0).cuda()
    x[3, 0, 2, 2] = float("nan")
    for rows in (x[:40], x[40:], x[:40]):
        inversion = alike(model, rows, graphs, 12, solver=solver)
        assert float(inversion.round_trip.nan_to_num().max()) < 1e-5
    assert len(graphs) == 1
    with torch.no_grad():
        model.layers[-1].weight.mul_(0.5)
    alike(model, x[40:], graphs, 12, solver=solver)
    assert len(graphs) == 1


def test_each_replay_repeats_its_loops_as_its_own_data_ask():
    model, graphs = Steep(12.0).cuda(), GraphCache()
    hard, easy = torch.linspace(-3.0, 3.0, 32, device="cuda")[:, None], torch.full((32, 1), 1e-3, device="cuda")
    calls = [alike(model, x, graphs, 4).calls for x in (hard, easy, hard)]
    assert len(graphs) == 1 and calls[0] == calls[2] != calls[1]
    with torch.no_grad():
        model.slope.fill_(-12.0)
    assert not pf.invert(model, hard, 4, max_iterations=5, graphs=graphs).converged.all()
