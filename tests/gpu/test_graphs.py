"""CUDA graphs of trajectories: the same states as eager, after weights changed in place too."""

import os
import subprocess
import sys

import pytest
import torch
from gpu_graphs import own_failures  # noqa: F401
from torch import nn

import pgraft_fast as pf
from pgraft_fast.sampling import GraphCache
from pgraft_fast_benchmarks.timing import launches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.mix = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, t):
        return torch.tanh(self.mix(x) + t[:, None, None, None])


def roll(tuned, reference, graphs, seed=0, ids=None, solver="ddpm", n=6):
    ids = torch.arange(n, device="cuda") if ids is None else ids
    return pf.rollout(
        reference, pf.Schedule.vp_linear(), shape=(4, 8, 8), steps=10, solver=solver, parameterization="v",
        cuts=(0.2, 0.7), seed=seed, sample_ids=ids, tuned=tuned, cut=0.4, graphs=graphs,
    )  # fmt: skip


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpmpp_2m", "heun", "euler_sde"])
def test_each_side_is_a_graph_with_the_same_states(solver):
    tuned, reference, graphs = Net(0).cuda(), Net(1).cuda(), GraphCache()
    for ids in (torch.arange(6, device="cuda"), torch.arange(20, 26, device="cuda")):
        eager, graphed = (roll(tuned, reference, cache, ids=ids, solver=solver) for cache in (None, graphs))
        torch.testing.assert_close(graphed.x_0, eager.x_0)
        for cut in (0.2, 0.7):
            torch.testing.assert_close(graphed.x_cut[cut], eager.x_cut[cut])
    assert len(graphs) == 2


def test_weights_that_change_in_place():
    tuned, reference, graphs = Net(0).cuda(), Net(1).cuda(), GraphCache()
    before = roll(tuned, reference, graphs).x_0
    with torch.no_grad():
        tuned.mix.weight.mul_(1.5)
    after = roll(tuned, reference, graphs).x_0
    assert len(graphs) == 2
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, roll(tuned, reference, None).x_0)
    tuned.mix.weight = nn.Parameter(tuned.mix.weight.detach() * 0.5)
    torch.testing.assert_close(roll(tuned, reference, graphs).x_0, roll(tuned, reference, None).x_0)


def test_generators_advance_as_in_a_plain_run():
    def noisy(inputs, generators):
        return [inputs[0] + torch.randn(inputs[0].shape, device="cuda", generator=generators[0])]

    x, graphs = torch.zeros(1000, device="cuda"), GraphCache()
    plain, graphed = (torch.Generator("cuda").manual_seed(7) for _ in range(2))
    for _ in range(3):
        (got,) = graphs.run("noise", noisy, [x], [graphed])
        assert torch.equal(got, noisy([x], [plain])[0])
    assert torch.equal(plain.get_state(), graphed.get_state())


def test_default_generator_advances_as_in_a_plain_run():
    def noisy(inputs, generators):
        return [inputs[0] + torch.randn_like(inputs[0])]

    x, graphs = torch.zeros(1000, device="cuda"), GraphCache()
    torch.cuda.manual_seed(3)
    plain = [noisy([x], [])[0] for _ in range(3)]
    torch.cuda.manual_seed(3)
    assert all(torch.equal(graphs.run("noise", noisy, [x])[0], want) for want in plain)


def test_memory_limit_drops_the_oldest():
    def work(inputs, generators):
        return [inputs[0].repeat(64).cumsum(0)]

    graphs = GraphCache(memory_limit=1)
    for key in range(3):
        graphs.run(key, work, [torch.zeros(2**20, device="cuda")])
    assert len(graphs) == 1


def test_out_of_memory_is_told(caplog):
    def work(inputs, generators):
        return [torch.empty(2**40, device="cuda")]

    graphs = GraphCache()
    assert graphs.run("big", work, [torch.zeros(1, device="cuda")]) is None
    assert "memory did not suffice" in caplog.text
    assert graphs.run("big", work, [torch.zeros(1, device="cuda")]) is None
    small = graphs.run("small", lambda inputs, generators: [inputs[0] + 1], [torch.zeros(1, device="cuda")])
    assert float(small[0]) == 1.0


def test_what_reads_back_is_refused_and_constants_of_the_host_are_kept(caplog):
    table = torch.arange(3.0)

    def reads_back(inputs, generators):
        return [inputs[0] * float(inputs[0].sum())]

    def brings(inputs, generators):
        made = torch.tensor([1.0, 2.0, 3.0], device="cuda")
        return [inputs[0] + table.to("cuda") + made.mul_(2)]

    graphs, x = GraphCache(), torch.ones(3, device="cuda")
    assert graphs.run("reads", reads_back, [x]) is None and "no CUDA graph can be made" in caplog.text
    for change in (0.0, 1.0):
        table.add_(change)
        for _ in range(3):
            (got,) = graphs.run("brings", brings, [x])
            assert torch.equal(got, brings([x], [])[0])


def test_bytes_and_memory_of_graphs():
    def work(inputs, generators):
        return [inputs[0].repeat(64).cumsum(0)]

    graphs, x = GraphCache(), torch.zeros(2**20, device="cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for key in range(2):
        graphs.run(key, work, [x])
    assert graphs.bytes >= 2 * 64 * x.nbytes
    graphs.clear()
    assert torch.cuda.memory_reserved() - before < 64 * x.nbytes


@pytest.mark.skipif("PGRAFT_FAST_OWN_PROCESS" not in os.environ, reason="in a process of its own, see below")
def test_a_capture_that_fails(caplog):
    def waits(inputs, generators):
        torch.cuda.synchronize()
        return [inputs[0] * 1000.0]

    graphs, x = GraphCache(), torch.ones(1000, device="cuda")
    kept = graphs.run("before", lambda inputs, generators: [inputs[0] + 1], [x])
    stream = torch.cuda.current_stream()
    assert graphs.run("bad", waits, [x]) is None
    assert "could not be captured" in caplog.text and torch.cuda.current_stream() == stream
    assert torch.equal(waits([x], [])[0], x * 1000)
    torch.cuda.synchronize()
    assert graphs.run("other", lambda inputs, generators: [inputs[0] * 2], [x]) is None
    again = graphs.run("before", lambda inputs, generators: [inputs[0] + 1], [x])
    assert torch.equal(again[0], kept[0])
    # Memory is still given back and taken.
    before = torch.cuda.memory_reserved()
    large = torch.empty(2**28, device="cuda")
    del large
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before


def test_a_failed_capture_in_a_process_of_its_own():
    """As above: other tests of this process capture."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=",
         f"{__file__}::test_a_capture_that_fails"],
        env=environment | {"PGRAFT_FAST_OWN_PROCESS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_launches_are_counted():
    x = torch.ones(1000, device="cuda")
    assert launches(lambda: (x + 1, x * 2)) == 2
