"""The Triton kernels on a GPU: make test-gpu.

The same cases as in the interpreter, at sizes that fill a GPU; the same noise and choices as on the CPU, bit for bit;
launches, CUDA graphs, host syncs.
"""

import os

import pytest
import torch
from held import DTYPES, hold

from pgraft_fast.ops import (
    anderson_mix,
    fixed_point_update,
    gather_rows,
    partial_noise,
    philox_normal,
    reward_filter,
    solver_step,
    use_backend,
    weighted_mse,
)

if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a GPU, and TRITON_INTERPRET=0: make test-gpu", allow_module_level=True)

parts = pytest.importorskip("pgraft_fast_kernels.parts")

TABLE = torch.tensor([[1.1, -0.4, 0.7, 0.45, -0.2, 0.0, 4, 0], [0.9, -0.6, 0.8, 0.15, 0.0, 0.3, 5, 2]]).cuda()
SHAPES = [(0, 3), (1, 1), (3, 3, 7, 5), (16, 4, 64, 64)]


def drawn(shape, dtype, *names):
    return {name: torch.randn(shape, device="cuda").to(dtype) for name in names}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {}, {"guidance": 7.5}, {"guidance": 3.0, "guidance_rescale": 0.7}, {"clip": 0.8, "return_x_0": True},
        {"guidance": 2.0, "dynamic_ratio": 0.995, "dynamic_limit": 3.0}, {"return_log_prob": True},
    ],
    ids=str,
)  # fmt: skip
def test_solver_step(options, dtype, shape):
    if "guidance_rescale" in options and shape[0] < 2:
        return  # One value has no spread.
    for row in (0, 1):
        step = torch.tensor(row, device="cuda")

        def run(x, out, table, x_cut, step=step, **more):
            x_cut = x_cut.clone()
            done = solver_step(x, out, table, step, x_cut=x_cut, seed=3, **more, **options)
            return [value for value in (*done, x_cut) if value is not None]

        inputs = drawn(shape, dtype, "x", "out", "previous") | {"table": TABLE}
        inputs |= drawn(shape, dtype, "out_null") if "guidance" in options else {}
        hold(run, inputs | {"x_cut": torch.zeros(2, *shape, dtype=dtype, device="cuda")}, "triton")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_and_inverse(dtype, shape):
    t = torch.rand(shape[0], 4, dtype=torch.float64, device="cuda") + 0.5
    hold(lambda x, noise, levels: partial_noise(x, levels, 0.9, 0.3, noise=noise),
         drawn(shape, dtype, "x", "noise") | {"levels": t}, "triton")  # fmt: skip

    def loss_and_gradient(out, target, weight):
        out = out.detach().requires_grad_()
        loss = weighted_mse(out, target, weight)
        return loss.detach(), torch.autograd.grad(loss.sum(), out)[0]

    weight = torch.rand(shape[0], device="cuda")
    hold(loss_and_gradient, drawn(shape, dtype, "out", "target") | {"weight": weight}, "triton")
    hold(lambda x, v, y: fixed_point_update(x, v, y, 0.3), drawn(shape, dtype, "x", "v", "y"), "triton")
    history = drawn((5, *shape), dtype, "following", "residual")
    hold(lambda following, residual: (anderson_mix(following, residual, 1e-6),), history, "triton")


@pytest.mark.parametrize("shape", [(2, 3, 51, 67), (16, 4, 64, 64), (1, 16, 128, 128)], ids=str)
def test_one_program_a_sample_and_many_give_the_same_bits(shape, monkeypatch):
    x, out, null = drawn(shape, torch.float32, "x", "out", "null").values()
    history, weight = torch.randn(5, *shape, device="cuda"), torch.rand(shape[0], device="cuda")
    whole = {"guidance_rescale": 0.7, "dynamic_ratio": 0.995, "dynamic_limit": 3.0, "return_log_prob": True}

    def results():
        done = solver_step(x, out, TABLE, torch.tensor(1, device="cuda"), out_null=null, guidance=2.0, seed=3, **whole)
        return done.x_s, done.log_prob, weighted_mse(out, x, weight), anderson_mix(history, history.sin())

    many = results()
    assert all(torch.equal(a, b) for a, b in zip(many, results(), strict=True))
    monkeypatch.setattr(parts, "FULL_BATCH", 0)
    assert all(torch.equal(a, b) for a, b in zip(many, results(), strict=True))


@pytest.mark.parametrize("n", [1, 7, 4096, 100_003])
def test_noise_is_that_of_the_cpu(n):
    ids, steps = torch.arange(5) + 2**40, torch.tensor([[3], [2**32 - 1]])
    on_cpu = philox_normal(-7, ids, steps, n)
    on_gpu = philox_normal(-7, ids.cuda(), steps.cuda(), n).cpu()
    ulp = torch.finfo(torch.float32).eps * on_cpu.abs().clamp(min=2.0**-20)
    assert bool(((on_gpu - on_cpu).abs() <= 2 * ulp).all())
    assert torch.equal(on_gpu, on_cpu)


@pytest.mark.parametrize("rule", ["top_k", "classical", "threshold", "preference", "binary"])
@pytest.mark.parametrize(("groups", "width"), [(65_536, 16), (300, 100), (40, 1024)])
def test_choices_are_those_of_the_cpu(groups, width, rule):
    rewards = torch.randint(0, 50, (groups, width)).float()
    rewards[torch.rand(rewards.shape) < 0.02] = float("nan")
    options = {"k": 4, "threshold": 30.0, "temperature": 5.0, "best_if_empty": True}
    on_cpu = reward_filter(rewards, rule, **options)
    on_gpu = reward_filter(rewards.cuda(), rule, **options)
    for name in ("mask", "group_count", "packed", "count"):
        assert torch.equal(getattr(on_gpu, name).cpu(), getattr(on_cpu, name))


def test_one_launch_a_step_and_no_sync():
    x = torch.randn(16, 4, 64, 64, device="cuda")
    step = torch.tensor(1, device="cuda")
    solver_step(x, x, TABLE, step, out_null=x, guidance=7.5)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            solver_step(x, x, TABLE, step, out_null=x, guidance=7.5)
            kept = reward_filter(x.view(-1, 16), "top_k", k=4)
            gather_rows(kept.packed, x.view(-1, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    steps = [event for event in profile.events() if "solver_step" in event.name]
    assert len(steps) == 1


def test_filter_and_steps_in_one_graph():
    """A captured trajectory with selection gives, on new inputs, what eager calls give."""
    x, rewards = torch.randn(64, 4, 8, 8, device="cuda"), torch.randn(16, 4, device="cuda")
    x_cut = torch.zeros(2, *x.shape, device="cuda")
    counter = torch.zeros(1, dtype=torch.int64, device="cuda")

    def whole():
        counter.zero_()
        state = x
        for _ in range(2):
            state = solver_step(state, 0.3 * state, TABLE, counter, x_cut=x_cut, seed=5).x_s
            counter.add_(1)
        kept = reward_filter(rewards, "top_k", k=2)
        return state, gather_rows(kept.packed, x_cut[1])[0], kept.count

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), use_backend("triton"):
        for _ in range(2):
            whole()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = whole()
    x.normal_(), rewards.normal_()
    graph.replay()
    torch.cuda.synchronize()
    for got, wanted in zip([value.clone() for value in captured], whole(), strict=True):
        assert torch.equal(got, wanted)
