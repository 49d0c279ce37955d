"""How models are called: twins with the same weights, compiled ones."""

import pytest
import torch
from torch import nn

from pgraft_fast.errors import InputError
from pgraft_fast.finetune import execution
from pgraft_fast.finetune.execution import Execution

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 3))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(autouse=True)
def _with_twins(monkeypatch):
    monkeypatch.setattr(execution, "onednn_pays", lambda: True)


def test_a_twin_has_the_same_weights():
    net, x = Net().eval(), torch.randn(5, 32)
    twin = Execution("eager", CPU).of(net)
    kinds = [type(layer).__name__ for layer in twin.modules()]
    # The last layer is too small to be worth it.
    assert kinds.count("_Linear") == 1 and kinds.count("Linear") == 1
    assert type(net.layers[0]) is nn.Linear
    assert torch.allclose(twin(x), net(x), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(0.3)
    assert torch.allclose(twin(x), net(x), rtol=1e-5, atol=1e-6)
    twin(x).sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())
    assert {id(p) for p in twin.parameters()} == {id(p) for p in net.parameters()}


def test_a_twin_trains_and_evaluates_with_the_original():
    net, x = Net().train(), torch.randn(400, 32)
    twin = Execution("eager", CPU).of(net)
    mean = net.layers[2].running_mean.clone()
    assert float((twin(x) - twin(x)).detach().abs().max()) > 0.1
    assert not torch.equal(net.layers[2].running_mean, mean)
    net.eval()
    assert torch.equal(twin(x), twin(x)) and torch.allclose(twin(x), net(x), rtol=1e-5, atol=1e-6)
    net.train()
    net.layers[1].eval()
    assert torch.equal(twin(x), twin(x))


def test_one_twin_a_module():
    run, net, other = Execution("eager", CPU), Net(), Net()
    assert run.of(net) is run.of(net) is not run.of(other)


class Scaled(nn.Module):
    """One of several models on a network."""

    def __init__(self, net, factor):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return self.factor * self.net(x)


def test_models_on_one_network_share_its_twin():
    net, run, x = Net(), Execution("eager", CPU), torch.randn(400, 32)
    model, other = Scaled(net, 1.0), Scaled(net, -2.0)
    first, second = run.of(model), run.of(other)
    assert first.twin.net is second.twin.net is not net and type(net.layers[0]) is nn.Linear
    # The network is as whoever was told last to train or to evaluate left it.
    model.train()
    other.eval()
    torch.testing.assert_close(second(x), other(x))
    torch.testing.assert_close(first(x), model(x))
    assert torch.equal(first(x), first(x))
    model.train()
    other.training = False
    assert not torch.equal(second(x), second(x))


def test_a_network_that_has_got_other_layers_gets_another_twin():
    net, run, x = Net().eval(), Execution("eager", CPU), torch.randn(5, 32)
    before = run.of(Scaled(net, 1.0).eval())
    net.layers[0] = nn.Sequential(net.layers[0], nn.Linear(64, 64))
    after = run.of(Scaled(net, 1.0).eval())
    torch.testing.assert_close(after(x), net(x))
    assert before(x).shape == (5, 3) and not torch.allclose(before(x), after(x))
    assert {id(p) for p in after.parameters()} == {id(p) for p in net.parameters()}


def test_where_nothing_is_gained_the_module_itself_is_called(monkeypatch):
    monkeypatch.setattr(execution, "onednn_pays", lambda: False)
    net = Net()
    assert Execution("eager", CPU).of(net) is net
    assert Execution("eager", torch.device("cuda")).of(net) is net


def test_graphs_need_cuda():
    with pytest.raises(InputError, match=r"mode='graph' needs CUDA, the model is on cpu; set mode='eager'"):
        Execution("graph", CPU)
    assert Execution("graph", torch.device("cuda")).graphs is not None
