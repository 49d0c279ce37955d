"""The cost model: lines, sums, and a probe of a model whose time is known."""

import pytest
import torch
from clock import Clock
from torch import nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.finetune import FinetuneSettings, Prompts, SampleSettings, SelectSettings, TrainSettings
from pgraft_fast.finetune.cost import CostModel, Line, evaluations_of, probe

FLOW = Schedule.linear_flow()


def settings(**sample):
    return FinetuneSettings(
        sample=SampleSettings(**{"prompts": 5, "candidates": 4, "steps": 6, "batch_size": 8} | sample),
        select=SelectSettings(k=2),
        train=TrainSettings(cut=0.25, steps=7, batch_size=8),
    )


@pytest.mark.parametrize(
    ("points", "fixed", "each"),
    [
        ([(10, 1.2), (110, 3.2)], 1.0, 0.02),
        ([(10, 2.0)], 0.0, 0.2),
        # Noise must not make a negative time of small or of large batches.
        ([(10, 1.0), (100, 11.0)], 0.0, None),
        ([(10, 1.0), (100, 0.9)], None, 0.0),
    ],
)
def test_lines(points, fixed, each):
    line = Line.fit(points)
    assert fixed is None or line.fixed == pytest.approx(fixed)
    assert each is None or line.each == pytest.approx(each)
    assert all(line(batch) == pytest.approx(seconds, rel=0.1) for batch, seconds in points)


def test_a_round_is_the_sum_of_its_parts():
    model = CostModel(call=Line(1.0, 0.1), train=Line(2.0, 0.5), score=Line(0.0, 0.01))
    config = settings()
    cost = model.round(config, evaluations_of(FLOW, config, "velocity"))
    # 20 samples in batches of 8, 8 and 4, six steps each.
    assert cost.sample == pytest.approx(6 * (1.8 + 1.8 + 1.4))
    assert cost.train == pytest.approx(7 * 6.0) and cost.score == pytest.approx(0.2)
    assert cost.seconds == pytest.approx(cost.sample + cost.train + cost.score)
    assert cost.model_calls == 20 * 6 + 3 * 7 * 8
    heun = settings(solver="heun")
    assert evaluations_of(FLOW, heun, "velocity") == 11


class Slow(nn.Module):
    """A network that takes 2 ms and half a millisecond a sample."""

    def __init__(self, clock):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.clock = clock

    def forward(self, x, t):
        self.clock.now += 2e-3 + 5e-4 * x.shape[0]
        return x * self.weight

    def __deepcopy__(self, memo):
        return Slow(self.clock)


def test_a_probe_finds_the_times(monkeypatch):
    config, clock = settings(), Clock()
    monkeypatch.setattr("pgraft_fast.sampling.timing.time", clock)

    def reward(x):
        clock.now += 1e-4 * x.shape[0]
        return x.sum(1)

    cost = probe(Slow(clock), FLOW, reward, config, shape=(4,), parameterization="velocity", prompts=Prompts(["a"]))
    for batch in (2, 5, 8):
        assert cost.call(batch) == pytest.approx(2e-3 + 5e-4 * batch)
        # A training step calls the network once.
        assert cost.train(batch) == pytest.approx(2e-3 + 5e-4 * batch)
        assert cost.score(batch) == pytest.approx(1e-4 * batch)
