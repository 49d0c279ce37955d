"""A tiny pipeline's denoiser as a model of prompt numbers, and a few steps of training on it."""

import math

import torch

from pgraft_fast.finetune import Kept, TrainSettings, train
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import facts_of

# The last one stands for none.
TEXTS = ("a red cube", "two cats", "")
SETTINGS = TrainSettings(steps=2, batch_size=4, learning_rate=1e-2, ema=0.5)
NAMES = ("sd", "sdxl", "sd3", "flux")


def denoiser(pipe, guidance=1.0):
    call = {"height": 16, "width": 16}
    if "max_sequence_length" in Calls(pipe, TEXTS).names:
        call["max_sequence_length"] = 64
    model = Driven.of(facts_of(Calls(pipe, TEXTS, call, guidance=guidance)))
    assert all(why is None for why in model.why.values())
    model.prepare([0, 1, 2])
    return model


def schedule_of(model):
    return model.facts.schedule, model.facts.parameterization


def kept(shape, rows=6):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, *shape, generator=generator)
    return Kept(x, torch.arange(rows), torch.arange(rows) % 2, 0.3)


def learn(learner, **more):
    model = learner.ema
    schedule, parameterization = schedule_of(model)
    arguments = {"parameterization": parameterization, "seed": 0, "null_condition": torch.tensor(2)} | more
    return train(learner, kept(model.facts.shape), schedule, **arguments)


def answer(model, x=None):
    # Of a twin, too.
    shape = getattr(model, "_original", [model])[0].facts.shape
    x = torch.linspace(-1, 1, 2 * math.prod(shape)).view(2, *shape) if x is None else x
    with torch.no_grad():
        return model(x, torch.tensor([0.9, 0.5]), torch.tensor([0, 1]))
