"""Rollouts as graphs, on the processor: a replay reads its inputs and weights, and nothing else of a later call."""

import pytest
import torch
from graph_caches import OtherCache, taped
from torch import nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.sampling import Guided, rollout
from pgraft_fast.sampling.solvers import SOLVERS

VP, FLOW = Schedule.cosine(), Schedule.linear_flow()
IDS = [torch.tensor([3, 40, 7]), torch.tensor([100, 2, 2**40])]
CONDITIONS = [torch.tensor([0, 1, 2]), torch.tensor([2, 2, 0])]


class Net(nn.Module):
    """With a condition, and with guidance where there is some."""

    def __init__(self, guidance=None):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.layer, self.guidance = nn.Embedding(3, 4), nn.Linear(4, 4), guidance

    def forward(self, x, t, condition):
        out = torch.tanh(self.layer(x) + self.table(condition) + t[:, None])
        return out if self.guidance is None else Guided(out, self.layer(x), self.guidance)


def drawn(net, number, graphs=None, **more):
    flow = more["solver"].startswith(("euler", "heun"))
    schedule, parameterization = (FLOW, "velocity") if flow else (VP, "v")
    return rollout(
        net, schedule, shape=(4,), sample_ids=IDS[number], condition=CONDITIONS[number], steps=6, seed=5,
        parameterization=parameterization, cuts=(0.0, 0.5), graphs=graphs, **more,
    )  # fmt: skip


def same(a, b):
    assert torch.equal(a.x_0, b.x_0) and a.x_cut.keys() == b.x_cut.keys()
    assert all(torch.equal(value, b.x_cut[cut]) for cut, value in a.x_cut.items())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_replays_are_plain_rollouts(solver, guidance):
    net, graphs = Net(guidance), OtherCache(taped)
    for number in (0, 1, 0):
        same(drawn(net, number, graphs, solver=solver), drawn(net, number, solver=solver))
    assert len(graphs) == 1
    with torch.no_grad():
        net.layer.weight.mul_(-0.5)
    same(drawn(net, 1, graphs, solver=solver), drawn(net, 1, solver=solver))
    assert len(graphs) == 1


def test_two_models_are_two_graphs_each_with_its_own_weights():
    net, tuned, graphs = Net(), Net(), OtherCache(taped)
    with torch.no_grad():
        tuned.layer.weight.add_(0.3)
    options = {"solver": "ddpm", "tuned": tuned, "cut": 0.5}
    for number in (0, 1):
        same(drawn(net, number, graphs, **options), drawn(net, number, **options))
    assert len(graphs) == 2
    for model in (net, tuned):
        same(drawn(model, 0, graphs, solver="ddpm"), drawn(model, 0, solver="ddpm"))
    assert len(graphs) == 4


def test_what_is_read_back_is_seen():
    class Reading(Net):
        def forward(self, x, t, condition):
            return super().forward(x, t, condition) * float(x.abs().max() > 0)

    with pytest.raises(AssertionError, match="a value is read back"):
        drawn(Reading(), 0, OtherCache(taped), solver="ddpm")
