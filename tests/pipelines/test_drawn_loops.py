"""Loops that no library has: driven as they are, or refused; never another output."""

import dataclasses
import random

import pytest
import torch
from toy_pipeline import SCHEDULERS, Habits, toy

from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.driver import seeds_of
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.pipelines.loop import NotServedError
from pgraft_fast.pipelines.record import record

PROMPTS = ("a red cube", "two cats")
REFUSED = ("edits", "twice", "random", "momentum", "counted")


def off(pipe, facts):
    """The largest difference to the pipeline's own outputs, at all states of a call that nobody watched before."""
    calls = facts.guided.calls
    own = record(pipe, calls.of(1, 3, seeds_of(7, range(3)), 6))
    driven = Driven.of(facts)
    worst = 0.0
    for step in reversed(own.steps):
        t = torch.full((3,), facts.times.back(float(step.t)), dtype=torch.float64)
        out = driven(step.x.double(), t, torch.ones(3, dtype=torch.int64)).float()
        worst = max(worst, float((out - step.out).detach().abs().max() / step.out.abs().max()))
    driven.close()
    return worst


@pytest.mark.parametrize("seed", range(100))
def test_drawn_loops(seed):
    rng = random.Random(seed)
    habits = Habits(**{field.name: rng.random() < 0.5 for field in dataclasses.fields(Habits)[:5]})
    habit = rng.choice((None, None, None, *REFUSED))
    if habit is not None:
        habits = dataclasses.replace(habits, **{habit: True})
    pipe = toy(habits, rng.choice(list(SCHEDULERS)), rng.randrange(10))
    calls = Calls(pipe, PROMPTS, guidance=rng.choice((None, 1.0, 5.0)))
    try:
        facts = facts_of(calls)
    except NotServedError:
        assert habit is not None
        return
    assert habit is None
    assert off(pipe, facts) < 1e-4


@pytest.mark.parametrize(
    ("habit", "line"),
    [
        ("edits", "ToyPipeline: its loop changes the state between two steps, it cannot be fine-tuned here"),
        ("twice", "ToyPipeline: its loop makes several steps at one time, or takes times from elsewhere"),
        ("random", r"ToyPipeline: the output of step \d is another one .*: it depends on more than these"),
        ("momentum", r"ToyPipeline: the output of step \d is another one .*: it depends on more than these"),
        ("counted", r"ToyPipeline: the output of step \d is another one .*: it depends on more than these"),
    ],
)
def test_what_is_refused(habit, line):
    with pytest.raises(NotServedError, match=f"^{line}$"):
        facts_of(Calls(toy(Habits(**{habit: True}), "euler"), PROMPTS))
