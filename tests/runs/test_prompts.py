"""Prompts of a run: texts, classes, and tables with arguments of their own."""

import pytest

from pgraft_fast.errors import InputError
from pgraft_fast.runs.prompts import RunPrompts


def test_a_tenth_is_held_out_and_every_prompt_comes_once():
    texts = [f"prompt {number}" for number in range(20)]
    run_prompts = RunPrompts.of([*texts, *texts[:5]], None, 0)
    assert len(run_prompts.held_out) == 2 and sorted([*run_prompts.train, *run_prompts.held_out]) == sorted(texts)
    assert run_prompts.prompts == [*run_prompts.train, *run_prompts.held_out] and run_prompts.columns == {}
    assert RunPrompts.of(texts, None, 1).held_out != run_prompts.held_out


def test_classes_stay_numbers():
    run_prompts = RunPrompts.of([3, 5, 7], [3], 0)
    assert run_prompts.train == ["5", "7"] and run_prompts.held_out == ["3"] and run_prompts.prompts == [5, 7, 3]


def test_one_prompt_is_measured_on_itself():
    run_prompts = RunPrompts.of(["a"], None, 0)
    assert run_prompts.train == run_prompts.held_out == ["a"]


def test_arguments_of_each_prompt_follow_it():
    entries = [{"prompt": f"p{number}", "strength": number / 10, "image": number} for number in range(8)]
    entries.append({"prompt": "p0", "strength": 0.9, "image": 9})
    run_prompts = RunPrompts.of(entries, None, 3)
    columns = (run_prompts.columns["strength"], run_prompts.columns["image"])
    for prompt, strength, image in zip(run_prompts.prompts, *columns, strict=True):
        assert {"prompt": prompt, "strength": strength, "image": image} in entries
    assert len(run_prompts.prompts) == 9


NO_LIST = "prompts: give a list with at least one prompt"
NO_PROMPT = "neither a text, nor a class number, nor a table with 'prompt'"


@pytest.mark.parametrize(
    ("prompts", "line"),
    [
        ([], NO_LIST),
        ("a", NO_LIST),
        ({"prompt": "a"}, NO_LIST),
        ([1.5], f"prompts: 1.5 is {NO_PROMPT}"),
        ([{"text": "a"}], f"prompts: {{'text': 'a'}} is {NO_PROMPT}"),
        ([{"prompt": "a"}, {"prompt": "b", "image": 1}, "c"], "prompts: '.' has .*, others .*; give all alike"),
    ],
)
def test_wrong_prompts(prompts, line):
    with pytest.raises(InputError, match=f"^{line}$"):
        RunPrompts.of(prompts, None, 0)
