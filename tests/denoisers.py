"""A tiny pipeline's denoiser as a model of prompt numbers."""

from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import facts_of

# The last one stands for none.
TEXTS = ("a red cube", "two cats", "")
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
