"""Inversion as one graph, on the processor: it is that of samples one by one, and a replay reads its inputs alone."""

import sys

import pytest
import torch
from fake_cuda import NoTransfers, on_fake_cuda, to_fake_cuda
from graph_caches import OtherCache, Tape
from small_nets import Steep
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pgraft_fast as pf
from pgraft_fast.errors import BackendError
from pgraft_fast.inverse_noise import SOLVERS, captured, flow_steps, invert_shards, shards
from pgraft_fast.inverse_noise.generator import Forward, Velocity
from pgraft_fast.inverse_noise.invert import is_faster_in_graphs
from pgraft_fast.sampling.device_while import device_while
from pgraft_fast.sampling.graphs import Captured
from pgraft_fast.sampling.host_traffic import HostTraffic, HostTrafficError
from pgraft_fast.tasks.digits.dequantised import dequantised, load_mlp_flow

# `pgraft_fast.inverse_noise.invert` as a name is the function.
invert_module = sys.modules[is_faster_in_graphs.__module__]


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, t, condition):
        return torch.tanh(self.layer(x)) * t[:, None] + condition


class Plainly:
    """A graph that runs the function again: what the loop over the data does, without what a capture adds."""

    def __init__(self, function, inputs, generators):
        self.inputs = [value.clone() for value in inputs]
        self.outputs = [value.clone() for value in function(self.inputs, [])]
        self.function = function

    def replay(self):
        for held, value in zip(self.outputs, self.function(self.inputs, []), strict=True):
            held.copy_(value)


def plainly(function, inputs, generators):
    graph = Plainly(function, inputs, generators)
    return Captured(graph, graph.inputs, graph.outputs, [], 1)


def on_tape(monkeypatch):
    """A cache whose graphs hold loops as CUDA's do. Returns it and the number of captures."""
    made = []

    def capture(function, inputs, generators):
        made.append(1)
        tape, buffers = Tape(), [value.clone() for value in inputs]
        monkeypatch.setattr(captured, "device_while", tape.loop)
        with tape:
            outputs = function(buffers, [])
        monkeypatch.setattr(captured, "device_while", device_while)
        return Captured(tape, buffers, outputs, [], 1)

    return OtherCache(capture), made


def alike(one, other, atol=2e-5):
    assert one.converged.tolist() == other.converged.tolist()
    assert torch.allclose(one.noise, other.noise, atol=atol, equal_nan=True)
    assert one.contraction == pytest.approx(other.contraction, rel=2e-2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_the_inversion_of_samples_that_leave_the_batch(solver):
    model, x = load_mlp_flow(), dequantised("held_out", 48, 0)
    x[5, 0, 1, 1] = float("nan")
    one, other = (
        pf.invert(model, x, 12, solver=solver, batch_size=20, graphs=graphs) for graphs in (OtherCache(plainly), None)
    )
    alike(one, other)
    assert int(one.converged.sum()) == 47 and float(one.round_trip.nan_to_num().max()) < 1e-5
    # Nobody leaves.
    assert other.calls < one.calls < 1.25 * other.calls


def test_maps_that_expand_are_damped_or_flagged():
    x = torch.linspace(-3.0, 3.0, 64)[:, None]
    alike(pf.invert(Steep(12.0), x, 4, graphs=OtherCache(plainly)), pf.invert(Steep(12.0), x, 4))
    lost = pf.invert(Steep(-12.0), x, 4, max_iterations=5, graphs=OtherCache(plainly))
    assert not lost.converged.all() and torch.isnan(lost.noise[~lost.converged]).all()
    # Four dampings of five evaluations for each of four steps, whatever the data.
    assert lost.calls <= 64 * 4 * 4 * 5


def test_a_replay_repeats_its_loops_as_its_own_data_ask(monkeypatch):
    """Easy samples after hard ones and again, and after the weights have changed in place: one capture."""
    graphs, captures = on_tape(monkeypatch)
    model = Steep(12.0)
    hard, easy = torch.linspace(-3.0, 3.0, 16)[:, None], torch.full((16, 1), 1e-3)
    calls = []
    for x in (hard, easy, hard):
        inversion = pf.invert(model, x, 4, graphs=graphs)
        alike(inversion, pf.invert(model, x, 4))
        calls.append(inversion.calls)
    assert len(captures) == 1 and calls[0] == calls[2] != calls[1]
    model = load_mlp_flow()
    x = dequantised("held_out", 16, 0)
    alike(pf.invert(model, x, 6, graphs=graphs), pf.invert(model, x, 6))
    with torch.no_grad():
        model.layers[-1].weight.mul_(0.5)
    alike(pf.invert(model, x.flip(0), 6, graphs=graphs), pf.invert(model, x.flip(0), 6))
    assert len(captures) == 2


def test_conditions_are_inputs(monkeypatch):
    graphs, captures = on_tape(monkeypatch)
    torch.manual_seed(0)
    model, x = Conditional(), torch.randn(8, 4)
    for condition in (torch.randn(8, 4), torch.zeros(8, 4)):
        inversion = pf.invert(model, x, 5, condition=condition, graphs=graphs)
        alike(inversion, pf.invert(model, x, 5, condition=condition))
    # Another plan is another graph.
    pf.invert(model, x, 6, condition=condition, graphs=graphs)
    assert len(captures) == 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_in_it_is_read_back(solver, monkeypatch):
    def once(condition, body, limit, *, pool=None):
        body()
        return torch.ones_like(condition).sum()

    def copy(self, source):
        """torch without CUDA refuses one of fake CUDA tensors, whichever way it goes."""
        assert source.device == self.device
        return self

    monkeypatch.setattr(captured, "device_while", once)
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    model, plan = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), flow_steps(3, solver)
    with FakeTensorMode(), torch.no_grad():
        model, x = to_fake_cuda(model), on_fake_cuda(torch.empty(6, 1, 8, 8))
        forward = Forward.of(plan, x)
        with NoTransfers():
            made = captured._inverse(
                plan, Velocity(lambda x, t: model(x) * t.view(-1, 1, 1, 1)), x, None, forward, 1e-6, 40
            )
    assert {value.device.type for value in made} == {"cuda"}


def test_a_watched_loop_runs_once():
    """What is brought from the host, and read back, must be the same in a run before the capture as in it."""
    left, runs = torch.full((1,), 5, dtype=torch.int32), []

    def body():
        left.sub_(1)
        runs.append(1)

    with HostTraffic(torch.device("cpu")).learned():
        assert int(left.shape[0]) == 1
        device_while(left, body, 10)
    assert len(runs) == 1
    with HostTraffic(torch.device("cpu")).learned(), pytest.raises(HostTrafficError, match="reads a value back"):
        int(left)
    device_while(left, body, 10)
    assert len(runs) == 5


def test_what_is_no_module_or_not_to_be_captured_runs_without():
    def refuse(function, inputs, generators):
        raise AssertionError

    for model in (lambda x, t: -x, Steep(0.5)):
        if isinstance(model, nn.Module):
            model.can_be_captured = False
        inversion = pf.invert(model, torch.randn(4, 3), 4, graphs=OtherCache(refuse))
        assert inversion.converged.all()


@pytest.mark.parametrize("fastest", ["plain", "graph"])
def test_a_trial_decides(fastest, monkeypatch, tmp_path):
    """Of ways that give the same noise; a run of shards asks once, and only where there is something left to do."""
    asked = []

    def choose(what, ways, device):
        asked.append(what)
        alike(ways["graph"](), ways["plain"]())
        return fastest

    monkeypatch.setattr(invert_module, "choose", choose)
    for module in (invert_module, shards):
        monkeypatch.setattr(module, "GraphCache", lambda: OtherCache(plainly))
    model, x = load_mlp_flow(), dequantised("held_out", 40, 0)
    assert is_faster_in_graphs(model, x[:8], steps=5) is (fastest == "graph")
    assert "Perceptron" in asked[0] and "(8, 1, 8, 8)" in asked[0] and "('steps', 5)" in asked[0]
    calls = []
    for _ in range(2):
        noise = invert_shards(model, lambda index: x[index], 40, tmp_path / "inverse", shard=16, steps=5)
        calls.append(noise.calls)
    assert len(asked) == 2 and calls[0] == calls[1]
    one_by_one = sum(pf.invert(model, x[low : low + 16], 5).calls for low in (0, 16, 32))
    assert (calls[0] > one_by_one) is (fastest == "graph")


def test_without_a_compiler_for_cuda_it_runs_without_and_says_so(monkeypatch, caplog):
    def no_compiler(device):
        raise BackendError("device_while: no nvcc was found")

    monkeypatch.setattr(captured.nvcc, "load", no_compiler)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with FakeTensorMode(), caplog.at_level("INFO"):
        x = on_fake_cuda(torch.empty(2, 3))
        assert not captured.can_capture(Steep(1.0), x, OtherCache(plainly))
    assert "the inversion runs without CUDA graphs: device_while: no nvcc was found" in caplog.text
