"""Grammar, questions and split of the shapes prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.shapes import prompts as grammar
from pgraft_fast.tasks.shapes.geometry import COLOURS, SHAPES
from pgraft_fast.tasks.shapes.prompts import CATEGORIES, NUMBERS, RELATIONS, Prompt, Thing, parse

things = st.builds(
    Thing,
    st.sampled_from(SHAPES),
    st.none() | st.sampled_from(list(COLOURS)),
    st.none() | st.sampled_from(("small", "large")),
    st.sampled_from(list(NUMBERS.values())),
)


@given(st.lists(things, min_size=1, max_size=2), st.none() | st.sampled_from(RELATIONS))
def test_parse_reads_every_text_back(parts, relation):
    prompt = Prompt(tuple(parts), relation if len(parts) == 2 else None)
    assert parse(prompt.text) == prompt
    assert len(set(prompt.questions)) == len(prompt.questions) >= 2
    assert prompt.total == sum(part.count for part in parts)


def test_questions_of_an_example():
    prompt = parse("a large yellow star above a small red circle")
    assert [question.text for question in prompt.questions] == [
        "is there a star?",
        "is there a yellow star?",
        "is there a large yellow star?",
        "is there a circle?",
        "is there a red circle?",
        "is there a small red circle?",
        "is a large yellow star above a small red circle?",
        "is the number of objects in all exactly 2?",
    ]
    assert [question.text for question in parse("three green triangles").questions] == [
        "is there a triangle?",
        "is there a green triangle?",
        "are there exactly three green triangles?",
        "is the number of objects in all exactly 3?",
    ]


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("a circle", "single_object"),
        ("a circle and a star", "two_objects"),
        ("four stars", "counting"),
        ("a small red star", "colours"),
        ("a red circle left of a blue square", "position"),
        ("a red circle and a blue square", "attribute_binding"),
    ],
)
def test_categories(text, category):
    assert parse(text).category == category


def test_train_and_test_ask_for_different_pictures():
    train, test = grammar.train_prompts(), grammar.test_prompts()
    assert not {p.key for p in train} & {p.key for p in test}
    assert len({p.text for p in train + test}) == len(train) + len(test)
    assert 0.15 < len(test) / (len(train) + len(test)) < 0.25
    for split in (train, test):
        assert {p.category for p in split} == set(CATEGORIES)
    # The split is one of combinations: a mirrored relation or another order does not cross it.
    assert parse("a red circle left of a blue star").key == parse("a blue star right of a red circle").key
    assert parse("a red circle and a blue star").key == parse("a blue star and a red circle").key


def test_split_is_the_same_in_parts():
    few = grammar.test_prompts(2)
    assert [p.category for p in few] == [c for c in CATEGORIES for _ in range(2)]
    assert set(few) <= set(grammar.test_prompts())
    with pytest.raises(InputError, match="per_category=0"):
        grammar.train_prompts(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a cat", "after 'a' come .* got 'cat'"),
        ("red circle", "starts with one of a, two, three, four"),
        ("two circle", "got 'circle'"),
        ("a circle left a star", "'left of'"),
        ("a circle and a star and a square", "may stand once"),
        ("", "each thing starts"),
    ],
)
def test_texts_outside_the_grammar(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)
