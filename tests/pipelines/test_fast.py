"""The denoiser called directly, against the pipeline's own calls; and which loops are explained."""

import pytest
import torch
from every_pipeline import CASES, build, call_of, prompts_of
from toy_pipeline import SCHEDULERS, Habits, toy

from pgraft_fast.pipelines.calls import Calls, seeds_of
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.pipelines.record import record
from pgraft_fast.pipelines.ways import GUIDED, UNGUIDED

# Why loops are driven: with guidance, and without.
SEEDED = "the seed of a sample decides more than its noise"
DRIVEN = {
    "sd_inpaint": (SEEDED, SEEDED),
    "flux_fill": (SEEDED, SEEDED),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_of_two_prompts_at_all_times(name):
    """In one batch, at every state and time of a call of each prompt's own; with guidance and without."""
    facts = facts_of(Calls(build(name), prompts_of(name)[:2], call_of(name)))
    driven = Driven.of(facts)
    reasons = tuple(driven.why[way] and driven.why[way].partition(" (off")[0] for way in (GUIDED, UNGUIDED))
    assert reasons == DRIVEN.get(name, (None, None))
    for kind, way in ((GUIDED, facts.guided), (UNGUIDED, facts.unguided)):
        if facts.seeded:
            # Of the row's own seed then, which this does not ask for.
            continue
        calls = {n: way.calls.of(n, 2, seeds_of(9, (4, 5)), 3) for n in (1, 0)}
        steps = [(n, step) for n, call in calls.items() for step in record(facts.pipe, call).steps]
        t = torch.tensor([facts.times.back(float(s.t.reshape(-1)[0])) for _, s in steps for _ in range(2)]).double()
        numbers = torch.tensor([n for n, _ in steps for _ in range(2)])
        x, wanted = (torch.cat(values) for values in zip(*((s.x[:2], s.out[:2]) for _, s in steps), strict=True))
        with torch.no_grad():
            output = driven.like(way=kind)(x, t.float() if facts.times.table is None else t, numbers)
        assert float((output - wanted).abs().max()) <= 2e-5 * float(wanted.abs().max())
    driven.close()


@pytest.mark.parametrize("name", ["sdxl", "wan"])
def test_gradients_are_those_of_its_own_loop(name):
    facts = facts_of(Calls(build(name), prompts_of(name)[:2], call_of(name)))
    driven = Driven.of(facts)
    x, t, numbers = torch.randn(3, *facts.shape), torch.tensor([0.3, 0.9, 0.3]), torch.tensor([0, 1, 1])
    weights = [weight for weight in driven.net.parameters() if weight.requires_grad]
    grads = []
    for fast in (True, False):
        if not fast:
            driven.fast.update(dict.fromkeys((GUIDED, UNGUIDED)))
        out = driven(x, t, numbers)
        grads.append((out.detach(), *torch.autograd.grad(out.square().sum(), weights, allow_unused=True)))
    # Some are zero but for rounding.
    size = max(float(gradient.abs().max()) for gradient in grads[1] if gradient is not None)
    for mine, theirs in zip(*grads, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5 * size)
    driven.close()


def test_rows_are_one_call_of_the_denoiser():
    facts = facts_of(Calls(build("sd"), [f"prompt {number}" for number in range(5)], {}))
    driven, calls = Driven.of(facts), []
    x, t, numbers = torch.randn(5, *facts.shape), torch.rand(5), torch.arange(5)
    driven(x, t, numbers)
    seen = driven.net.register_forward_pre_hook(lambda net, args: calls.append(args[0].shape[0]))
    driven(x, t, numbers)
    seen.remove()
    assert calls == [10]


@pytest.mark.parametrize(("name", "weights"), [("sd", (-6.5, 7.5)), ("sana", (-3.5, 4.5)), ("wan", (5.0, -4.0))])
def test_guidance_in_bfloat16(name, weights):
    """The scale is the call's own, not one that was fitted to rounded answers."""
    driven = Driven.of(facts_of(Calls(build(name).to(torch.bfloat16), prompts_of(name)[:2], call_of(name))))
    assert driven.why == dict.fromkeys((GUIDED, UNGUIDED))
    assert driven.fast[GUIDED].explanation.weights == weights and driven.fast[UNGUIDED].explanation.weights == (1.0,)
    driven.close()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("habits", [Habits(), Habits(doubled=False, negated=True), Habits(constant=True)])
def test_which_toys_are_explained(habits, scheduler):
    """A shifted state is found nowhere among the arguments: its loop is driven, and right."""
    driven = Driven.of(facts_of(Calls(toy(habits, scheduler), ("a", "longer"))))
    assert (driven.fast[GUIDED] is None) == habits.constant
    driven.close()


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_rescaled_guidance_is_explained(name):
    facts = facts_of(Calls(build(name), prompts_of(name)[:2], call_of(name) | {"guidance_rescale": 0.7}, guidance=6.5))
    driven = Driven.of(facts)
    explanation = driven.fast[GUIDED].explanation
    assert explanation.scale == 6.5 and explanation.rescale == 0.7
    own = record(facts.pipe, facts.guided.calls.of(1, 2, seeds_of(9, (4, 5)), 3))
    for step in own.steps:
        t = torch.full((2,), facts.times.back(float(step.t.reshape(-1)[0])))
        with torch.no_grad():
            output = driven(step.x[:2], t, torch.ones(2, dtype=torch.int64))
        assert float((output - step.out[:2]).abs().max()) <= 2e-5 * float(step.out.abs().max())
    driven.close()
