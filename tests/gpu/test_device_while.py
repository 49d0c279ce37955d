"""Loops inside CUDA graphs that the data of each replay end: make test-gpu."""

import gc

import pytest
import torch
from gpu_graphs import skip_without_loops

from pgraft_fast.sampling.device_while import device_while

skip_without_loops()

LIMIT = 1000


class FixedPoint:
    """x <- f(x) from `start` until no value moves by 1e-6; `start` may change between replays."""

    def __init__(self, f, start):
        self.f, self.start, self.x = f, start, torch.empty_like(start)
        self.moving = torch.empty(1, dtype=torch.int32, device="cuda")

    def body(self):
        following = self.f(self.x)
        self.moving.copy_((following - self.x).abs().amax() >= 1e-6)
        self.x.copy_(following)

    def run(self, limit=LIMIT, pool=None):
        self.x.copy_(self.start)
        self.moving.fill_(1)
        return device_while(self.moving, self.body, limit, pool=pool)


def captured(run, *arguments, **options):
    """(graph, what run returned), after a run outside, which loads the kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(*arguments, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*arguments, **options)
    return graph, out


def hold(loop, graph, count, starts, limit=LIMIT):
    """Replays from these starts are the host loop: the same iterates, bit for bit, as often. Returns the counts."""
    counts = []
    for start in starts:
        loop.start.copy_(start)
        graph.replay()
        torch.cuda.synchronize()
        on_device, done = loop.x.clone(), int(count)
        assert done == int(loop.run(limit))
        assert torch.equal(on_device, loop.x)
        counts.append(done)
    return counts


def test_cosine():
    """Few iterations near the fixed point 0.739, tens from afar, and again few: a replay starts anew."""
    near = torch.full((64,), 0.73909, device="cuda")
    loop = FixedPoint(torch.cos, near.clone())
    graph, count = captured(loop.run)
    first, far, again = hold(loop, graph, count, [near, torch.linspace(-3, 3, 64, device="cuda"), near])
    assert first == again
    assert first < 15
    assert 25 < far < 60


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_limit(limit):
    loop = FixedPoint(torch.cos, torch.linspace(-3, 3, 64, device="cuda"))
    loop.run(1)
    graph, count = captured(loop.run, limit)
    assert hold(loop, graph, count, [torch.ones(64, device="cuda"), -loop.start], limit) == [limit, limit]


def test_false_at_the_start():
    left, x = torch.tensor(2, dtype=torch.int32, device="cuda"), torch.zeros(3, device="cuda")

    def body():
        x.add_(1)
        left.sub_(1)

    graph, count = captured(device_while, left, body, LIMIT)
    for start in (0, 4, 0, 1):
        left.fill_(start), x.zero_()
        graph.replay()
        assert (int(count), int(left), x.tolist()) == (start, 0, [float(start)] * 3)


def test_two_loops_and_what_follows_them():
    """The work captured after a loop waits for it, and the second loop for the first."""
    loop = FixedPoint(torch.cos, torch.zeros(64, device="cuda"))
    left = torch.empty((), dtype=torch.int32, device="cuda")

    def run():
        first = loop.run()
        left.copy_(first)
        second = device_while(left, lambda: left.sub_(1), LIMIT)
        return first * 1, second, loop.x + 1

    graph, (first, second, following) = captured(run)
    for start in (0.7, -2.0):
        loop.start.fill_(start)
        graph.replay()
        torch.cuda.synchronize()
        assert int(first) == int(second) > 10
        assert torch.equal(following, loop.x + 1)


def test_a_loop_in_a_loop():
    """Sums of 1 ... n by counting."""
    outer, inner, total = (torch.full((), 2, dtype=torch.int32, device="cuda") for _ in range(3))

    def count_one():
        total.add_(1)
        inner.sub_(1)

    def body():
        inner.copy_(outer)
        device_while(inner, count_one, LIMIT)
        outer.sub_(1)

    graph, count = captured(device_while, outer, body, LIMIT)
    for n in (3, 0, 10):
        outer.fill_(n), total.zero_()
        graph.replay()
        assert (int(count), int(total)) == (n, n * (n + 1) // 2)


@pytest.mark.parametrize("own", [True, False])
def test_memory_of_the_body_is_its_own(own):
    """Products, convolutions and large temporaries in the body, while everything else is filled with NaN."""
    options = {"dtype": torch.float64, "device": "cuda"}
    weight, kernel = torch.randn(256, 256, **options) / 64, torch.randn(4, 4, 3, 3, **options) / 24

    def f(x):
        rows = x.view(-1, 256) @ weight
        images = torch.nn.functional.conv2d(rows.view(-1, 4, 8, 8), kernel, padding=1)
        many = torch.stack([images] * 64).sin()
        return many.mean(0).view_as(x) + 1

    pool = torch.cuda.MemPool() if own else None
    loop = FixedPoint(f, torch.zeros(512, 256, **options))
    graph, count = captured(loop.run, pool=pool)
    gc.collect()
    held = [torch.full((2**20 * size,), float("nan"), device="cuda") for size in (1, 4, 16, 64) for _ in range(4)]
    starts = [torch.randn(512, 256, **options) * scale for scale in (0.1, 10)]
    for start in starts:
        loop.start.copy_(start)
        graph.replay()
        torch.cuda.synchronize()
        on_device, done = loop.x.clone(), int(count)
        assert done > 3
        # A library may choose another algorithm outside the graph, so not bit for bit.
        assert abs(done - int(loop.run())) <= 1
        assert torch.allclose(on_device, loop.x, rtol=0, atol=1e-5)
    assert all(bool(value.isnan().all()) for value in held)


def test_a_body_that_fails():
    """Its error comes out, and the next capture works."""
    left = torch.ones(1, dtype=torch.int32, device="cuda")

    def fail():
        left.sub_(1)
        raise ZeroDivisionError("of the body")

    with pytest.raises(ZeroDivisionError, match="of the body"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        device_while(left, fail, LIMIT)
    test_false_at_the_start()
