"""Each pipeline's own loop, driven: its outputs, its pictures, its number of denoiser calls, its gradients."""

import pytest
import torch
from every_pipeline import CASES, build, call_of, prompts_of

from pgraft_fast.pipelines.calls import Calls, seeds_of
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.pipelines.loop import NotServedError
from pgraft_fast.pipelines.media import differ, media_of
from pgraft_fast.pipelines.record import record
from pgraft_fast.pipelines.ways import GUIDED, UNGUIDED

STEPS, SEEDS = 3, (11, 12)


class Watched:
    """A pipeline, what is known of it, and a call of its own with another prompt and other noise than the check's."""

    def __init__(self, name):
        self.pipe = build(name)
        self.facts = facts_of(Calls(self.pipe, prompts_of(name), call_of(name)))
        self.arguments = lambda: self.facts.guided.calls.of(1, 2, seeds_of(5, SEEDS), STEPS)
        self.own = record(self.pipe, self.arguments())
        self.driven = Driven.of(self.facts)


@pytest.fixture(scope="module", params=CASES)
def watched(request):
    made = Watched(request.param)
    yield made
    made.driven.close()


def test_outputs_are_those_of_its_own_loop(watched):
    facts, driver, first = watched.facts, watched.driven.drivers[GUIDED], watched.own.steps[0]
    starts = driver.start(1, seeds_of(5, SEEDS))
    if facts.begin == 1.0 and facts.times.first == 0.0:
        assert torch.equal(starts, first.x[:2])
    for step in reversed(watched.own.steps):
        # Through our times and back.
        t = facts.times.of_time(facts.times.back(float(step.t.reshape(-1)[0])))
        out = driver.output(step.x[:2], t, 1)
        span = float(step.out.abs().max())
        assert float((out - step.out[:2]).detach().abs().max()) <= 1e-5 * span


def test_it_makes_the_same_of_the_end(watched):
    last = watched.own.steps[-1].next
    made = watched.driven.drivers[GUIDED].finish(last[:2], 1)
    assert not differ(media_of(made), media_of(watched.own.media), 1e-5)


def test_calls_and_gradients(watched):
    """As many calls of the denoiser as plain diffusers makes, fewer without guidance, and gradients through all."""
    facts = watched.facts
    net, rows = getattr(watched.pipe, facts.denoiser), []
    seen = net.register_forward_pre_hook(lambda net, args, kwargs: rows.append(1), with_kwargs=True)
    try:
        watched.pipe(**watched.arguments())
        plain, _ = len(rows), rows.clear()
        record(watched.pipe, watched.arguments())
        assert len(rows) == plain
        x, numbers = torch.randn(2, *facts.shape), torch.ones(2, dtype=torch.int64)
        # Where the loop is not open yet, its first iteration is not what was asked for.
        watched.driven(x, torch.full((2,), 0.99), numbers)
        rows.clear()
        for number in range(STEPS):
            out = watched.driven(x, torch.full((2,), 0.99 - 0.01 * number), numbers)
        calls = 2 if facts.lowest else plain // len(watched.own.steps)
        # Where samples must be alone, one after the other.
        assert len(rows) == STEPS * calls * (2 if facts.alone else 1)
    finally:
        seen.remove()
    unguided = watched.driven.like(way=UNGUIDED)
    assert unguided.calls_a_sample <= watched.driven.calls_a_sample
    out = unguided(x, torch.tensor([0.95, 0.99]), torch.tensor([0, 1]))
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(out.square().sum(), weights, allow_unused=True)
    assert sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None) > 0.0


@pytest.mark.parametrize("name", ["sd", "sdxl_img2img", "sd3", "wan", "dit"])
def test_nothing_is_left_on_the_pipeline(name):
    pipe = build(name)
    before = {part: dict(vars(part)) for part in (pipe, pipe.scheduler)}
    driven = Driven.of(facts_of(Calls(pipe, prompts_of(name), call_of(name))))
    driven(torch.randn(2, *driven.facts.shape), torch.full((2,), 0.5), torch.zeros(2, dtype=torch.int64))
    for part, held in before.items():
        now = vars(part)
        assert now.keys() == held.keys() and all(now[key] is held[key] for key in held), type(part).__name__
    driven.close()


def test_a_blended_inpainting_is_refused():
    line = "StableDiffusionInpaintPipeline: its loop changes the state between two steps, it cannot be fine-tuned here"
    with pytest.raises(NotServedError, match=f"^{line}$"):
        facts_of(Calls(build("sd_inpaint_plain"), prompts_of(""), call_of("sd_inpaint_plain")))
