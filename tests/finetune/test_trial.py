"""Training for a probe, which leaves nothing behind."""

import copy

import pytest
import torch
from torch import nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.finetune import Learner, Prompts, TrainSettings
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.trial import training_trial

SETTINGS = TrainSettings(batch_size=4, micro_batch=2, objective="contrast")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.rows = nn.Parameter(torch.ones(3)), []

    def forward(self, x, t, condition):
        self.rows.append(condition.tolist())
        return self.weight * x


def trial(learner, prompts, rows=3, **options):
    return training_trial(
        learner.model, Schedule.vp_linear(), SETTINGS, torch.ones(2, 3), prompts, steps=2, batch_size=rows,
        parameterization="epsilon", run=Execution("eager", torch.device("cpu")), learner=learner, **options,
    )  # fmt: skip


def node_of(weight):
    """What gradients of a weight end in; made anew where nothing holds it any more."""
    return weight.expand_as(weight).grad_fn.next_functions[0][0]


def test_the_learner_is_as_it_was():
    learner = Learner(Net(), SETTINGS)
    learner.steps_done = 5
    before = copy.deepcopy(learner.tensors())
    settings = learner.settings
    with trial(learner, Prompts(["a", "b"], condition=torch.arange(2))) as steps:
        report = steps()
        assert report.steps == 2
    assert learner.steps_done == 5 and learner.settings is settings and not learner.optimizer.state
    after = learner.tensors()
    assert all(torch.equal(after[part][name], value) for part in before for name, value in before[part].items())


def test_prompts_are_made_ready():
    """Of as many as there are rows, however few samples."""
    ready = []
    prompts = Prompts(["a", "b", "c", "d"], torch.arange(4), prepare=lambda numbers: ready.extend(numbers.tolist()))
    with trial(Learner(Net(), SETTINGS), prompts) as steps:
        steps()
    assert ready == [0, 1, 2]


def test_nothing_that_was_put_aside_holds_the_nodes_that_gradients_end_in():
    """Where one lives on, made on another stream, a CUDA graph of a backward pass cannot be captured."""
    learner = Learner(Net(), SETTINGS)
    (weight,) = learner.optimizer.param_groups[0]["params"]
    with trial(learner, Prompts(["a"], torch.arange(1))) as steps:
        steps()
        node_of(weight).metadata["before"] = True
        assert not node_of(weight).metadata
        # What would hold one.
        clone = weight.clone()
        node_of(weight).metadata["before"] = True
        assert node_of(weight).metadata and clone.requires_grad


def test_also_after_an_error():
    learner = Learner(Net(), SETTINGS)
    before = learner.model.weight.detach().clone()
    with pytest.raises(ValueError, match="stop"), trial(learner, Prompts(["a"], torch.arange(1))) as steps:
        steps()
        assert not torch.equal(learner.model.weight, before)
        raise ValueError("stop")
    assert torch.equal(learner.model.weight, before)
