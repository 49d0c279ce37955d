"""Drawn answers of rewards: numbers in the order of the question, or one line that names the reward."""

import json
import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards.answers import parse, rewards_in_order
from pgraft_fast.rewards.protocol import as_call, evaluate

IDS = [40, 41, 42]
SAMPLES = torch.zeros(3, 1, 2, 2)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
JSON = st.recursive(SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=5), x, max_size=3))
NUMBERS = st.none() | st.integers(-(10**6), 10**6) | st.floats(width=32)
NO_ERROR = st.sampled_from([None, "", False, 0, [], {}])


def one_line_of(error):
    assert str(error).startswith("reward 'mine'") and "\n" not in str(error)


def same(actual, wanted):
    return all(math.isnan(a) if b is None or math.isnan(b) else a == b for a, b in zip(actual, wanted, strict=True))


@given(st.permutations(range(3)), st.lists(NUMBERS, min_size=3, max_size=3), NO_ERROR, JSON)
@settings(max_examples=100)
def test_drawn_right_answers(order, values, error, more):
    answer = {"id": 1, "error": error, "sample_ids": [IDS[i] for i in order], "rewards": [values[i] for i in order]}
    rewards = rewards_in_order(parse(json.dumps({"more": more, **answer}).encode(), "mine"), IDS, 1, "mine")
    assert same(rewards, values)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "error", "sample_ids", "rewards"), JSON)), st.data())
@settings(max_examples=200)
def test_drawn_wrong_answers(answer, data):
    """Parts of a right answer, with anything in place of the rest, as text that may be cut or changed."""
    for name, right in (("id", 1), ("sample_ids", IDS), ("rewards", [1, 2.5, None])):
        if data.draw(st.booleans()):
            answer[name] = right
    text = json.dumps(answer).encode()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.binary(max_size=3)) + text[at + data.draw(st.integers(0, 3)) :]
    try:
        rewards = rewards_in_order(parse(text, "mine"), IDS, 1, "mine")
    except RewardError as error:
        one_line_of(error)
    else:
        assert len(rewards) == 3 and all(isinstance(value, float) for value in rewards)


@given(st.lists(NUMBERS, min_size=3, max_size=3), st.sampled_from([list, tuple, lambda x: np.array(x, object)]))
def test_drawn_lists_of_numbers(values, kind):
    rewards = evaluate(as_call(lambda samples: kind(values)), "mine", SAMPLES, [""] * 3, IDS)
    assert same(rewards.tolist(), values)


@given(JSON | st.sets(st.integers()) | st.binary() | st.complex_numbers() | st.lists(st.complex_numbers()))
@settings(max_examples=150)
def test_drawn_returned_things(values):
    try:
        rewards = evaluate(as_call(lambda samples: values), "mine", SAMPLES, [""] * 3, IDS)
    except RewardError as error:
        one_line_of(error)
    else:
        assert rewards.shape == (3,) and rewards.dtype == torch.float32
