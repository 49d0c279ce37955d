"""Loops that no library has: driven as they are, or refused; never another output."""

import dataclasses
import random
import sys

import pytest
import torch
from toy_pipeline import SCHEDULERS, Habits, toy

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.calls import Calls, seeds_of
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.pipelines.loop import NotServedError
from pgraft_fast.pipelines.record import record

PROMPTS = ("a red cube", "two cats")
REFUSED = ("edits", "twice", "random", "momentum", "counted")


def off(pipe, facts):
    """The largest difference to the pipeline's own outputs, at all states of a call that nobody watched before."""
    calls = facts.guided.calls
    rows = 1 if calls.rows == 1 else 3
    own = record(pipe, calls.of(1, rows, seeds_of(7, range(rows)), 6))
    driven = Driven.of(facts)
    worst = 0.0
    for step in reversed(own.steps):
        t = torch.full((rows,), facts.times.back(float(step.t)), dtype=torch.float64)
        out = driven(step.x.double(), t, torch.ones(rows, dtype=torch.int64)).float()
        worst = max(worst, float((out - step.out).detach().abs().max() / step.out.abs().max()))
    driven.close()
    return worst


@pytest.mark.parametrize("seed", range(100))
def test_drawn_loops(seed):
    rng = random.Random(seed)
    habits = Habits(**{field.name: rng.random() < 0.5 for field in dataclasses.fields(Habits)[:6]})
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


def test_one_sample_at_a_time():
    """Where the pipeline makes no more, samples of a prompt are loops of their own."""
    facts = facts_of(Calls(toy(Habits(single=True)), PROMPTS))
    driven = Driven.of(facts)
    x, t, numbers = torch.randn(4, 3, 4, 4), torch.full((4,), 0.5), torch.tensor([0, 1, 0, 0])
    whole = driven(x, t, numbers)
    for row in range(4):
        assert torch.equal(driven(x[row : row + 1], t[:1], numbers[row : row + 1])[0], whole[row])
    driven.close()


def test_without_greenlet(monkeypatch):
    monkeypatch.setitem(sys.modules, "greenlet", None)
    line = r"a pipeline's loop is driven with greenlet: pip install 'pgraft-fast\[text\]'"
    with pytest.raises(InputError, match=f"^{line}$"):
        facts_of(Calls(toy(), PROMPTS))


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
