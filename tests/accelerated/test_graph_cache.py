"""GraphCache and weights_key on the processor: graphs are kept, found and dropped as their keys say."""

from types import SimpleNamespace

import pytest
import torch
from graph_caches import OtherCache
from pipelines import build
from torch import nn

from pgraft_fast.sampling.graphs import Captured, weights_key


class Recorder:
    """Captures by keeping the function and its own buffers. sizes: bytes of the graphs, in the order of capture."""

    def __init__(self, sizes=(), full_for=()):
        self.sizes, self.full_for, self.captured = list(sizes), full_for, []

    def __call__(self, function, inputs, generators):
        number = len(self.captured)
        self.captured.append([tuple(value.shape) for value in inputs])
        if number in self.full_for:
            raise torch.OutOfMemoryError("no memory left")
        buffers = [value.clone() for value in inputs]
        outputs = function(buffers, list(generators))
        graph = SimpleNamespace(
            replay=lambda: [a.copy_(b) for a, b in zip(outputs, function(buffers, []), strict=True)]
        )
        return Captured(graph, buffers, outputs, [], self.sizes[number] if self.sizes else 1)


def double(inputs, generators):
    return [2 * inputs[0]]


def test_a_graph_is_captured_once():
    capture = Recorder()
    graphs = OtherCache(capture)
    for value in (1.0, 2.0, 3.0):
        x = torch.full((2, 3), value)
        (got,) = graphs.run("key", double, [x])
        assert torch.equal(got, 2 * x) and torch.equal(x, torch.full((2, 3), value))
    assert len(capture.captured) == len(graphs) == 1
    # Results are copies: the next replay does not change them.
    first, second = graphs.run("key", double, [torch.ones(2, 3)]), graphs.run("key", double, [torch.zeros(2, 3)])
    assert float(first[0].sum()) == 12.0 and float(second[0].sum()) == 0.0


@pytest.mark.parametrize("other", [
    torch.ones(3, 3), torch.ones(2, 3, dtype=torch.float64), torch.ones(3, 2).t(), torch.ones(2, 3, 1),
])  # fmt: skip
def test_other_shapes_are_other_graphs(other):
    capture = Recorder()
    graphs = OtherCache(capture)
    for value in (torch.ones(2, 3), other, torch.ones(2, 3), other):
        assert torch.equal(graphs.run("key", double, [value])[0], 2 * value)
    assert len(capture.captured) == len(graphs) == 2


def test_other_keys_are_other_graphs():
    capture = Recorder()
    graphs = OtherCache(capture)
    x = torch.ones(2)
    for factor in (2.0, 3.0, 2.0, 3.0):
        assert float(graphs.run(("by", factor), lambda inputs, own, f=factor: [f * inputs[0]], [x])[0][0]) == factor
    assert len(capture.captured) == 2
    graphs.clear()
    assert len(graphs) == graphs.bytes == 0
    graphs.run(("by", 2.0), double, [x])
    assert len(capture.captured) == 3


def keys_of(graphs):
    return [key for key, _ in graphs._held]


def test_the_one_unused_for_longest_goes():
    capture = Recorder(sizes=[40, 40, 40, 90, 200, 10])
    graphs = OtherCache(capture, 100)
    x = torch.ones(2)
    for key in ("a", "b", "a", "c"):
        graphs.run(key, double, [x])
    assert keys_of(graphs) == ["a", "c"] and graphs.bytes == 80
    graphs.run("d", double, [x])
    assert keys_of(graphs) == ["d"] and graphs.bytes == 90
    # One graph beyond the limit is kept: it is the one in use.
    assert graphs.run("e", double, [x]) is not None
    assert keys_of(graphs) == ["e"] and graphs.bytes == 200
    graphs.run("f", double, [x])
    assert keys_of(graphs) == ["f"]
    assert len(capture.captured) == 6


def test_no_limit():
    graphs = OtherCache(Recorder(sizes=[2**40] * 20))
    for key in range(20):
        graphs.run(key, double, [torch.ones(2)])
    assert len(graphs) == 20


def test_where_memory_ends(caplog):
    capture = Recorder(full_for=(1,))
    graphs = OtherCache(capture)
    x, wide = torch.ones(2), torch.ones(2000)
    graphs.run("small", double, [x])
    assert graphs.run("wide", double, [wide]) is None
    assert [record.message for record in caplog.records] == [
        "memory did not suffice to capture a CUDA graph: this shape runs without"
    ]
    # Everything held is let go; the refused one is not tried again, others are.
    assert len(graphs) == 0
    assert graphs.run("wide", double, [wide]) is None and len(capture.captured) == 2
    assert graphs.run("wide", double, [x]) is not None and graphs.run("small", double, [x]) is not None
    assert len(capture.captured) == 4 and len(caplog.records) == 1


def test_what_a_graph_reads_is_held_with_it():
    graphs, keep_calls = OtherCache(Recorder(), 1), []
    for key in ("a", "a", "b"):
        graphs.run(key, double, [torch.ones(2)], keep=lambda key=key: keep_calls.append(key) or key)
    assert keep_calls == ["a", "b"]
    assert [held.kept for held in graphs._held.values()] == ["b"]


def test_an_error_in_the_function_is_raised():
    def broken(inputs, generators):
        raise ValueError("broken")

    graphs = OtherCache(Recorder())
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            graphs.run("key", broken, [torch.ones(2)])
    assert len(graphs) == 0


def test_weights_in_place_and_replaced():
    unet = build("sd").unet
    before = weights_key(unet)
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(1.0)
    assert weights_key(unet) == before
    unet.load_state_dict(build("sd", seed=1).unet.state_dict())
    assert weights_key(unet) == before
    old, unet.conv_in.weight = unet.conv_in.weight, nn.Parameter(unet.conv_in.weight.clone())
    assert weights_key(unet) != before
    unet.conv_in.weight = old
    assert weights_key(unet) == before
    unet.double()
    assert weights_key(unet) != before


def test_buffers_replaced():
    norm = nn.BatchNorm1d(3)
    before = weights_key(norm)
    norm.running_mean.add_(1.0)
    assert weights_key(norm) == before
    norm.running_mean = torch.zeros(3)
    assert weights_key(norm) != before


def test_training_mode():
    unet = build("sd").unet
    before = weights_key(unet)
    assert weights_key(unet.train()) != before == weights_key(unet.eval())


def test_a_model_s_own_key_is_asked_before_what_lies_within():
    class Sharing(nn.Module):
        def __init__(self, shared, on):
            super().__init__()
            self.shared, self.on = shared, on

        @property
        def graph_key(self):
            self.shared.on = self.on
            return ()

    shared = nn.Linear(2, 2)
    keys = [weights_key(Sharing(shared, on), lambda module: module.on) for on in (True, False, True)]
    assert keys[0] == keys[2] != keys[1]
    assert weights_key(Sharing(shared, True)) == weights_key(Sharing(shared, False))
