"""Optimiser steps as graphs, on the CPU: a tape of torch's operations stands for what CUDA captures."""

import copy
import functools
from contextlib import nullcontext

import diffusers
import pytest
import torch
from fake_cuda import NoTransfers, on_fake_cuda, to_fake_cuda
from graph_caches import OtherCache, taped
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pgraft_fast.diffusion import Schedule, noise_laws
from pgraft_fast.errors import PgraftError
from pgraft_fast.finetune import Kept, Learner, TrainSettings, train
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.training import _Losses
from pgraft_fast.sampling import GraphCache

VP = Schedule.vp_linear()
TABLE = Schedule.from_diffusers(diffusers.DDPMScheduler())
SETTINGS = TrainSettings(steps=5, batch_size=4, learning_rate=1e-2, ema=0.5)


class Net(nn.Module):
    """Counts its calls, which a replay does not make."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.layer, self.calls = nn.Embedding(3, 4), nn.Linear(4, 4), []
        self.to(dtype)

    def forward(self, x, t, condition=None):
        self.calls.append(x.shape[0])
        x = x.to(self.layer.weight)
        rest = 0 if condition is None else self.table(condition)
        return torch.tanh(self.layer(x) + rest + t.view(-1, 1).to(x)).float()


def kept(condition=True, contrast=False, rows=9):
    generator = torch.Generator().manual_seed(1)
    x, ids = torch.randn(rows, 4, generator=generator), torch.arange(rows)
    advantage = torch.randn(rows, generator=generator) if contrast else None
    return Kept(x, ids, ids % 3 if condition else None, 0.3, advantage=advantage, group=ids // 3 if contrast else None)


def trained(graphs, settings=SETTINGS, dtype=torch.float32, rounds=2, states=None, learner=None, **more):
    learner = Learner(Net(dtype), settings) if learner is None else learner
    options = {"parameterization": "epsilon", "seed": 3, "graphs": graphs, **more}
    reports = [train(learner, kept() if states is None else states, VP, **options) for _ in range(rounds)]
    return learner, reports


def same(a, b):
    mine, theirs = a.tensors(), b.tensors()
    assert a.steps_done == b.steps_done
    for group, part in mine.items():
        assert part.keys() == theirs[group].keys()
        assert all(torch.equal(value, theirs[group][name]) for name, value in part.items()), group


@pytest.mark.parametrize("objective", ["state", "clean", "contrast"])
@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_weights_bit_for_bit(objective, condition, dtype):
    settings = SETTINGS.model_copy(update={"objective": objective})
    states = kept(condition, objective == "contrast")
    graphs = OtherCache(taped)
    (plain, wanted), (graphed, reports) = (trained(cache, settings, dtype, states=states) for cache in (None, graphs))
    same(graphed, plain)
    assert [report.loss for report in reports] == [report.loss for report in wanted]
    # Gradients and step; the first step of all is plain, and two runs are for a capture.
    assert len(graphs) == 2
    assert len(plain.model.calls) == 10 and len(graphed.model.calls) == 3


def test_dropped_prompts_and_the_last_smaller_batch():
    settings = SETTINGS.model_copy(update={"null_prompt": 0.5})
    runs = [trained(cache, settings, null_condition=torch.tensor(2)) for cache in (None, OtherCache(taped))]
    same(runs[1][0], runs[0][0])


def test_a_gradient_that_is_not_finite_makes_no_step():
    learners = []
    for cache in (None, OtherCache(taped)):
        learner, _ = trained(cache, rounds=1)
        before = {name: value.clone() for name, value in learner.weights()["model"].items()}
        bad = kept()
        bad.x[:] = float("nan")
        with pytest.raises(PgraftError, match="not finite 3 times"):
            train(learner, bad, VP, parameterization="epsilon", seed=3, graphs=cache)
        assert all(torch.equal(value, learner.weights()["model"][name]) for name, value in before.items())
        # And goes on as if nothing had been.
        train(learner, kept(), VP, parameterization="epsilon", seed=3, graphs=cache)
        learners.append(learner)
    same(learners[1], learners[0])


def test_what_is_made_of_the_weights_sees_that_they_are_others():
    """`Merged` looks at the versions of a LoRA, and a replay runs nothing of torch's."""
    learner, _ = trained(OtherCache(taped), rounds=1)
    graphs = OtherCache(taped)
    trained(graphs, learner=learner, rounds=1)
    before = {id(value): value._version for value in learner.moved()}
    trained(graphs, learner=learner, rounds=1, settings=SETTINGS)
    assert len(learner.model.calls) == 5 and all(value._version > before[id(value)] for value in learner.moved())


def recomputing(net):
    net.gradient_checkpointing = True
    return net


@pytest.mark.parametrize(
    ("net", "memory"),
    [(Net(torch.float16), None), (recomputing(Net()), None), (Net(), BatchSize(2))],
    ids=["float16", "recomputed", "in parts"],
)
def test_what_is_not_captured(net, memory):
    graphs = OtherCache(taped)
    pair = [trained(cache, learner=Learner(copy.deepcopy(net), SETTINGS), memory=memory)[0] for cache in (None, graphs)]
    same(pair[1], pair[0])
    assert len(graphs) == 0


@pytest.mark.parametrize("failing", [0, 1])
def test_where_a_capture_does_not_succeed(failing):
    """Of the gradients, or of the step: what ran before has left nothing."""

    class Failing(GraphCache):
        def captures(self, device):
            return True

        def kept(self, key, inputs):
            return [weight.grad for weight in learner.optimizer.param_groups[0]["params"]]

        def run(self, key, function, inputs, generators=(), keep=lambda: None, compiled=False):
            which = 0 if key[0] == "gradients" else 1
            for _ in range(2):
                function(inputs, [])
            if which == failing:
                return None
            keep()
            # Neither is this a graph: it runs once more.
            return function(inputs, [])

    plain, learner = trained(None)[0], Learner(Net(), SETTINGS)
    trained(Failing(), learner=learner)
    same(learner, plain)


@pytest.mark.parametrize("schedule", [VP, TABLE], ids=["formula", "table"])
@pytest.mark.parametrize("objective", ["state", "clean", "contrast"])
def test_nothing_is_read_back_or_brought_on_cuda(objective, schedule, monkeypatch):
    """The loss and what follows its gradient, on fake CUDA tensors, through which a CPU build takes no gradient."""
    settings = SETTINGS.model_copy(update={"objective": objective})
    states, net, rows = kept(contrast=objective == "contrast"), Net(), torch.arange(4)
    # Fake tables are not remembered, see tests/diffusion.
    monkeypatch.setattr(noise_laws, "_on_device", functools.cache(noise_laws._on_device))
    # What is known of the cut is worked out once, on the host.
    real = _Losses(Learner(net, settings), states, schedule, "epsilon", 3, None)
    real.of(real.inputs(real.batch(rows, rows, rows)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        learner = Learner(to_fake_cuda(net), settings)
        make = _Losses(learner, states, schedule, "epsilon", 3, None)
        inputs = [on_fake_cuda(value) for value in make.inputs(make.batch(rows, rows, rows))]
        for _ in range(2):
            # The first step makes the moments.
            with NoTransfers() if learner.optimizer.state else nullcontext():
                learner.begin()
                with torch.no_grad():
                    loss = make.of(inputs)
                for weight in learner.model.parameters():
                    weight.grad = torch.zeros_like(weight)
                norm = learner.clip()
                learner.move()
    assert loss.device.type == norm.device.type == "cuda"
