"""Inversion as one CUDA graph: as without, for data that ask for more and for fewer iterations, by one graph."""

import pytest
import torch
from gpu_graphs import own_failures, skip_without_loops  # noqa: F401
from small_nets import Steep

import pgraft_fast as pf
from pgraft_fast.inverse_noise import SOLVERS
from pgraft_fast.sampling import GraphCache
from pgraft_fast.tasks.digits.dequantised import dequantised, load_mlp_flow

skip_without_loops()


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
