"""The pilot of a plan: its averaged weights, in which the first ones have no part."""

import pytest
import torch
from torch import nn

from pgraft_fast.finetune import Learner, TrainSettings
from pgraft_fast.finetune.borrowed import Borrowed
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.pilot import reached


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.layer(x))


@pytest.mark.parametrize("steps", [1, 12])
@pytest.mark.parametrize("decay", [0.0, 0.98])
def test_the_average_is_that_of_the_steps_alone(steps, decay):
    """sum_k d^(n - k) w_k / sum_k d^(n - k) of the weights w_1 .. w_n after each step, and nothing of w_0."""
    learner = Learner(Net(), TrainSettings(learning_rate=0.1, ema=decay))
    before = {name: value.clone() for name, value in learner.ema.state_dict().items()}
    lent = Borrowed(learner, learner.settings, Execution("eager", torch.device("cpu")))
    after = []
    for number in range(steps):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
        learner.update(learner.model(x).square().sum())
        after.append({name: value.detach().double() for name, value in learner.model.named_parameters()})
    lent.leave_start(1.0 / (1.0 - decay**steps))
    weight = decay ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    for name, value in learner.ema.named_parameters():
        each = torch.stack([weights[name] for weights in after])
        average = torch.tensordot(weight / weight.sum(), each, 1)
        torch.testing.assert_close(value.double(), average, rtol=1e-4, atol=1e-5)
        assert not torch.equal(value, before[name])
    lent.give_back()
    assert all(torch.equal(value, before[name]) for name, value in learner.ema.state_dict().items())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.98])
def test_how_far_an_average_is(decay):
    average = 0.0
    for step in range(1, 101):
        average = decay * average + (1.0 - decay) * step
        assert reached(decay, step) == pytest.approx(average, rel=1e-9)
