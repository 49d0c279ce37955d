"""Every pipeline that the tests build, accelerated: what plain diffusers draws, in as many calls of its networks."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from every_pipeline import CASES, NAMES, SERVED, build, call_of, prompts_of

from pgraft_fast import accelerate
from pgraft_fast.pipelines.calls import Calls, seeds_of
from pgraft_fast.pipelines.standin import parameters_of

STEPS = 4
# So that each expert makes more than one of them.
MORE_STEPS = {"wan22": 8}
# What is left in its own loop, and why.
LEFT = {
    "dit": "its output is no sum of the denoiser's answers",
    "sd_inpaint_plain": "it changes the state between two steps",
}
# Samples of a prompt that one call makes.
ONE_AT_A_TIME = ("cogvideox", "animatediff")
EVERY = [*CASES, *(name for name in NAMES if name not in SERVED)]


def arrays(out):
    """All numbers of what a call returned."""
    content = out[0] if isinstance(out, tuple) else next(iter(out.values()))
    parts = content if isinstance(content, list) else [content]
    return [np.asarray(part.float() if isinstance(part, torch.Tensor) else part, dtype=np.float64) for part in parts]


class Pair:
    """A pipeline as it is, and one of the same parts that is accelerated."""

    def __init__(self, name):
        self.plain = build(name)
        self.fast = copy.copy(self.plain)
        self.fast.scheduler = copy.deepcopy(self.plain.scheduler)
        accelerate(self.fast)
        self.raw = "output_type" in parameters_of(self.plain)
        self.rows = 1 if name in ONE_AT_A_TIME else 2
        self.steps = MORE_STEPS.get(name, STEPS)
        self.calls = Calls(self.plain, prompts_of(name), call_of(name))
        nets = [net for net in self.plain.components.values() if isinstance(net, torch.nn.Module)]
        self.made = []
        for net in nets:
            # Hooks would be noticed: its own function is counted instead.
            net.forward = self._counted(net, net.forward)

    def _counted(self, net, forward):
        def call(*args, **kwargs):
            self.made.append(net)
            return forward(*args, **kwargs)

        return call

    def drawn(self, pipe, number, seed, **how):
        """Latents where there are any: what decoding rounds hides differences."""
        calls = replace(self.calls, pipe=pipe, **how)
        arguments = calls.of(number, self.rows, seeds_of(seed, range(self.rows)), self.steps)
        self.made.clear()
        return arrays(pipe(**arguments | ({"output_type": "latent"} if self.raw else {}))), len(self.made)

    def check(self, number, seed, **how):
        """The same from both; the networks' calls of both."""
        wanted, plain = self.drawn(self.plain, number, seed, **how)
        outputs, fast = self.drawn(self.fast, number, seed, **how)
        for mine, theirs in zip(outputs, wanted, strict=True):
            assert mine.shape == theirs.shape
            assert np.abs(mine - theirs).max() <= 1e-5 * max(1.0, np.abs(theirs).max())
        return plain, fast


@pytest.mark.parametrize("name", EVERY)
def test_what_it_draws(name, caplog):
    """Watched, then other prompts and noise with a generator a sample; without guidance; at another scale of it."""
    with caplog.at_level("INFO", logger="pgraft_fast"):
        pair = Pair(name)
        off = next(pair.calls.without_guidance(), None)
        ways = [{}, *([] if off is None else [{"call": off.call, "guidance": off.guidance}])]
        if pair.calls.guidance_name is not None:
            ways.append({"guidance": 2.5})
        for how in ways:
            pair.check(0, 1, **how)
            for number, seed in ((1, 2), (0, 3)):
                plain, fast = pair.check(number, seed, **how)
                assert plain == fast
    own = [record.message for record in caplog.records if record.name.startswith("pgraft_fast")]
    lines = [message.partition(" (off")[0] for message in own]
    if name in LEFT:
        assert lines[0].endswith(f": such calls run in its own loop: {LEFT[name]}")
        assert set(lines) == {lines[0]}
    else:
        assert lines == [] and len(pair.fast._pgraft_fast.known) >= min(2, len(ways))


@pytest.mark.parametrize("name", ["sd", "qwen_image", "wan", "sd_controlnet"])
def test_two_prompts_in_one_call(name):
    plain, fast, words = build(name), accelerate(build(name)), prompts_of(name)
    for pair in ([words[0], words[1]], [words[2], words[0]]):
        outputs = []
        for pipe in (plain, fast):
            arguments = Calls(pipe, [pair], call_of(name), repeat=True).of(0, 1, [7], STEPS)
            generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
            outputs.append(
                arrays(pipe(**arguments | {"prompt": pair, "generator": generators, "output_type": "latent"}))
            )
        for theirs, mine in zip(*outputs, strict=True):
            assert np.abs(mine - theirs).max() <= 1e-5 * max(1.0, np.abs(theirs).max())
    assert len(fast._pgraft_fast.known)
