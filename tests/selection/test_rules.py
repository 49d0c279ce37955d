"""Acceptance rules against a plain implementation, over drawn cases."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgraft_fast.diffusion import Stream, uniform
from pgraft_fast.errors import InputError
from pgraft_fast.selection import RULES, accept

NAN, INF = math.nan, math.inf
# Few distinct values, so that ties are common.
VALUES = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0, NAN, INF, -INF])


@st.composite
def cases(draw):
    """(groups of (reward, sample id, key), rule, parameters)."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    if draw(st.booleans()):
        lengths = [lengths[0]] * len(lengths)
    total = sum(lengths)
    ids = draw(st.permutations(range(100, 100 + total)))
    rewards = draw(st.lists(VALUES, min_size=total, max_size=total))
    keys = draw(st.lists(st.integers(0, 3), min_size=total, max_size=total))
    rows = list(zip(rewards, ids, keys, strict=True))
    groups = []
    for length in lengths:
        groups.append(rows[:length])
        rows = rows[length:]
    rule = draw(st.sampled_from(RULES))
    parameters = {
        "top_k": {"k": draw(st.integers(1, min(lengths)))},
        "classical": {"temperature": draw(st.sampled_from([0.3, 2.0])), "r_max": draw(st.sampled_from([None, 1.5]))},
        "threshold": {"threshold": draw(st.sampled_from([0.0, 0.5, 3.0]))},
        "binary": {"threshold": draw(st.sampled_from([None, 0.25]))},
    }.get(rule, {})
    return groups, rule, parameters


def plain(group, rule, parameters, seed, draw):
    """The rule on one group, one sample after another; (reward, id, key) -> set of accepted ids."""
    finite = sorted((row for row in group if math.isfinite(row[0])), key=lambda row: (-row[0], row[1]))
    match rule:
        case "top_k":
            return {row[1] for row in finite[: parameters["k"]]}
        case "best_of_n":
            return {row[1] for row in finite[:1]}
        case "threshold":
            return {row[1] for row in finite if row[0] >= parameters["threshold"]}
        case "classical":
            top = parameters["r_max"]
            top = finite[0][0] if top is None and finite else top
            chance = {row[1]: math.exp(min(0.0, (row[0] - top) / parameters["temperature"])) for row in finite}
            return {i for i, p in chance.items() if draws(seed, i, draw) < p}
        case "preference":
            kept = set()
            for first, second in zip(group[0::2], group[1::2], strict=False):
                pair = [row for row in (first, second) if math.isfinite(row[0])]
                kept |= {min(pair, key=lambda row: (-row[0], row[1]))[1]} if pair else set()
            return kept
        case _:
            limit = parameters["threshold"]
            positive = [row for row in finite if row[0] >= (0.5 if limit is None else limit)]
            return {min(row[1] for row in positive if row[2] == key) for key in {row[2] for row in positive}}


def draws(seed, sample_id, draw):
    return float(uniform(seed, torch.tensor([sample_id]), draw, Stream.ACCEPTANCE))


@settings(max_examples=600)
@given(case=cases(), seed=st.integers(0, 2**63 - 1), draw=st.integers(0, 5), double=st.booleans())
def test_equals_the_plain_rule(case, seed, draw, double):
    groups, rule, parameters = case
    flat = [row for group in groups for row in group]
    dtype = torch.float64 if double else torch.float32
    rewards, ids, keys = (torch.tensor([row[i] for row in flat]) for i in range(3))
    rewards = rewards.to(dtype)
    arguments = {**parameters, "seed": seed, "draw": draw}
    expected = set().union(*(plain(group, rule, parameters, seed, draw) for group in groups))
    offsets = torch.tensor([0, *[len(group) for group in groups]]).cumsum(0)
    copies = {"copies_of": keys} if rule == "binary" else {}
    ragged = accept(rewards, rule, offsets=offsets, sample_id=ids, **copies, **arguments)
    assert set(ids[ragged.mask].tolist()) == expected
    assert ragged.group_count.tolist() == [len(plain(group, rule, parameters, seed, draw)) for group in groups]
    if len({len(group) for group in groups}) == 1:
        shape = (len(groups), -1)
        copies = {"copies_of": keys.view(shape)} if rule == "binary" else {}
        square = accept(rewards.view(shape), rule, sample_id=ids.view(shape), **copies, **arguments)
        assert torch.equal(square.mask.flatten(), ragged.mask)
        assert torch.equal(square.index, ragged.index)


@settings(max_examples=100)
@given(case=cases(), empty=st.sampled_from(["skip", "best"]))
def test_empty_groups(case, empty):
    groups, rule, parameters = case
    for group in groups:
        rewards, ids, keys = (torch.tensor([[row[i] for row in group]]) for i in range(3))
        copies = {"copies_of": keys} if rule == "binary" else {}
        got = accept(rewards, rule, sample_id=ids, empty=empty, **copies, **parameters)
        expected = plain(group, rule, parameters, 0, 0)
        finite = sorted((row for row in group if math.isfinite(row[0])), key=lambda row: (-row[0], row[1]))
        if not expected and empty == "best":
            expected = {row[1] for row in finite[:1]}
        assert set(ids[got.mask].tolist()) == expected


def test_index_count_and_packing():
    rewards = torch.tensor([[1.0, NAN, 3.0, 2.0], [INF, 0.0, 0.0, -INF]])
    got = accept(rewards, "top_k", k=2)
    assert got.mask.tolist() == [[False, False, True, True], [False, True, True, False]]
    assert got.index.tolist() == [2, 3, 5, 6]
    assert int(got.count) == 4
    assert got.packed.tolist() == [2, 3, 5, 6]
    some = accept(rewards, "threshold", threshold=1.5)
    assert some.packed.tolist() == [2, 3, -1, -1, -1, -1, -1, -1]
    assert some.index.tolist() == [2, 3]


def test_fewer_valid_than_k():
    got = accept(torch.tensor([[NAN, 1.0, NAN], [NAN, NAN, NAN]]), "top_k", k=2)
    assert got.index.tolist() == [1]
    assert got.group_count.tolist() == [1, 0]


def test_whole_numbers_and_booleans():
    assert accept(torch.tensor([[1, 3, 2]]), "best_of_n").index.tolist() == [1]
    assert accept(torch.tensor([[True, False, True]]), "binary").index.tolist() == [0, 2]


def test_classical_limit_of_one_group_each():
    rewards = torch.zeros(2, 50_000)
    got = accept(rewards, "classical", temperature=1.0, r_max=torch.tensor([1.0, 2.0]), seed=3)
    shares = got.group_count / 50_000
    assert shares.tolist() == pytest.approx([math.exp(-1), math.exp(-2)], abs=0.008)


ONE = torch.tensor([[0.0, 1.0]])


@pytest.mark.parametrize(
    ("rewards", "rule", "arguments", "message"),
    [
        (ONE, "best", {}, "rule='best' is unknown; known: top_k"),
        (ONE, "top_k", {}, "k=None: rule 'top_k' needs a whole number"),
        (ONE, "top_k", {"k": 0}, "k=0"),
        (ONE, "top_k", {"k": 3}, "k=3 is more than the 2 candidates of a group"),
        (ONE, "best_of_n", {"k": 1}, "k= has no meaning for rule 'best_of_n'"),
        (ONE, "classical", {}, "rule 'classical' needs temperature="),
        (ONE, "classical", {"temperature": 0.0}, "temperature=0.0"),
        (ONE, "threshold", {}, "rule 'threshold' needs threshold="),
        (ONE, "threshold", {"threshold": 2.0, "empty": "raise"}, "group 0 has no acceptable candidate"),
        (ONE, "top_k", {"k": 1, "empty": "drop"}, "empty='drop' is unknown"),
        (ONE, "binary", {"copies_of": torch.zeros(2)}, r"copies_of has shape \(2,\)"),
        (ONE, "top_k", {"k": 1, "sample_id": torch.zeros(2)}, "sample_id has shape"),
        (ONE[0], "top_k", {"k": 1}, r"rewards must be \(P, N\)"),
        (torch.zeros(2, 0), "best_of_n", {}, r"rewards must be \(P, N\)"),
        ([[0.0]], "best_of_n", {}, "must be a tensor, got list"),
        (ONE[0], "top_k", {"k": 2, "offsets": torch.tensor([0, 1, 2])}, "k=2 is more than the 1 candidates of group 0"),
        (ONE[0], "top_k", {"k": 1, "offsets": torch.tensor([0, 1])}, "offsets must rise from 0 to 2"),
        (ONE[0], "top_k", {"k": 1, "offsets": torch.tensor([0, 3, 2])}, "offsets must rise from 0 to 2"),
    ],
)
def test_bad_input(rewards, rule, arguments, message):
    with pytest.raises(InputError, match=message):
        accept(rewards, rule, **arguments)
