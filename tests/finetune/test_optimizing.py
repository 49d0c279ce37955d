"""Averages and moments: the formula, the warm-up, and that there is one of each in the package."""

import re
from pathlib import Path

import pytest
import torch
from fake_cuda import write_unseen
from torch import nn
from torch._subclasses import FakeTensorMode

import pgraft_fast
from pgraft_fast.finetune import Learner, TrainSettings
from pgraft_fast.finetune.optimizing import follow, load_moments, moments_of, warmed_up
from pgraft_fast.sampling.timing import median_time, timed

CPU = torch.device("cpu")


def test_averages_follow():
    values = [torch.randn(3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64, requires_grad=True)]
    averages = [torch.randn(3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)]
    want = [0.9 * average + 0.1 * other.detach() for average, other in zip(averages, values, strict=True)]
    follow(iter(averages), iter(values), 0.9)
    assert all(torch.allclose(average, other, atol=1e-15) for average, other in zip(averages, want, strict=True))
    assert not any(average.requires_grad for average in averages)
    follow(averages, values, 0.0)
    assert all(torch.equal(average, other) for average, other in zip(averages, values, strict=True))


def test_torch_does_not_tell_what_it_writes_on_cuda():
    with FakeTensorMode():
        weights = [torch.empty(3, device="cuda")]
        before = weights[0]._version
        torch._foreach_lerp_(weights, [torch.empty(3, device="cuda")], 0.5)
        assert weights[0]._version == before
        follow(weights, [torch.empty(3, device="cuda")], 0.5)
        assert weights[0]._version > before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_made_of_weights_sees_that_they_were_written(monkeypatch, dtype):
    write_unseen(monkeypatch)
    learner = Learner(nn.Linear(3, 2).to(dtype), TrainSettings())

    def versions():
        return [weight._version for part in (learner._masters, learner._averages) for weight in part.written()]

    before = versions()
    learner.update(learner.model(torch.ones(2, 3, dtype=dtype)).float().square().mean())
    assert len(before) == (4 if dtype is torch.float32 else 8)
    assert all(new > old for new, old in zip(versions(), before, strict=True))


def test_warm_up():
    assert [warmed_up(0.9, step) for step in (0, 10, 90, 1000)] == [0.0, 0.5, 0.9, 0.9]


def test_moments_go_to_another_optimiser_and_on():
    def trained(steps, moments=None, weights=None):
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        if weights is not None:
            net.load_state_dict(weights)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        if moments is not None:
            load_moments(optimizer, moments)
        for _ in range(steps):
            optimizer.zero_grad()
            net(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
        return net, optimizer

    whole, _ = trained(5)
    half, optimizer = trained(2)
    moments = {name: value.clone() for name, value in moments_of(optimizer).items()}
    assert set(moments) == {f"{i}.{name}" for i in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    rest, _ = trained(3, moments, half.state_dict())
    assert all(torch.equal(weight, other) for weight, other in zip(whole.parameters(), rest.parameters(), strict=True))


def test_a_clock_counts_and_gives_the_last_result(monkeypatch):
    ticks = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0, 30.0, 33.0])
    monkeypatch.setattr("pgraft_fast.sampling.timing.time.perf_counter", lambda: next(ticks))
    assert timed(lambda: None, CPU) == 5.0
    calls = []
    assert median_time(lambda: calls.append(1) or len(calls), CPU) == (2.0, 4)


def test_one_of_each():
    """No other average, no other moments by number, no other lock, no other wait for a device in the package."""
    homes = {
        r"lerp_\(|swa_utils": {"optimizing.py"},
        r'state_dict\(\)\["state"\]': {"optimizing.py"},
        r"\bfcntl\b": set(),
        r"class \w*Policy\w*\b": {"policy.py"},
        r"torch\.cuda\.synchronize": {"timing.py", "graphs.py"},
    }
    for pattern, home in homes.items():
        names = {p.name for p in Path(pgraft_fast.__file__).parent.rglob("*.py") if re.search(pattern, p.read_text())}
        assert names == home, pattern
