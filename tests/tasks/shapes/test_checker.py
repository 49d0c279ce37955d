"""Renderer and checker: exact on what is drawn."""

import random
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.shapes import checker
from pgraft_fast.tasks.shapes import prompts as grammar
from pgraft_fast.tasks.shapes.checker import MIN_DISTANCE, answers, read, reward
from pgraft_fast.tasks.shapes.geometry import COLOURS, SHAPES, size_of
from pgraft_fast.tasks.shapes.prompts import CATEGORIES, parse
from pgraft_fast.tasks.shapes.render import draw, render, scene

N = 3000
MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@lru_cache
def drawn():
    """N prompts, the categories in turn, with their scenes and pictures."""
    choose = random.Random(3)
    known = grammar.train_prompts() + grammar.test_prompts()
    by_category = [[p for p in known if p.category == c] for c in CATEGORIES]
    chosen = [choose.choice(by_category[i % len(CATEGORIES)]) for i in range(N)]
    scenes = [scene(p, 11, i) for i, p in enumerate(chosen)]
    return chosen, scenes, draw(scenes)


def test_pictures_depend_on_prompt_seed_and_number_alone():
    chosen = grammar.train_prompts(2)
    all_at_once = render(chosen, seed=5, numbers=range(10, 10 + len(chosen)))
    assert torch.equal(all_at_once[3:4], render(chosen[3:4], seed=5, numbers=[13]))
    assert not torch.equal(all_at_once, render(chosen, seed=6, numbers=range(10, 10 + len(chosen))))
    assert not torch.equal(render([chosen[0]] * 2)[0], render([chosen[0]] * 2)[1])
    assert all_at_once.shape == (len(chosen), 3, 32, 32) and all_at_once.dtype == torch.float32
    assert float(all_at_once.min()) >= -1.0 and float(all_at_once.max()) == 1.0


def test_renderer_says_what_is_wrong():
    with pytest.raises(InputError, match="'four large triangles': its objects do not fit"):
        render([parse("four large triangles")])
    with pytest.raises(InputError, match="1 numbers for 2 prompts"):
        render([parse("a star")] * 2, numbers=[0])


def test_every_object_is_read_exactly():
    _, scenes, pictures = drawn()
    for blobs, reading in zip(scenes, read(pictures), strict=True):
        assert not reading.smudged and len(reading.blobs) == len(blobs)
        for blob in blobs:
            nearest = min(reading.blobs, key=lambda other: (other.x - blob.x) ** 2 + (other.y - blob.y) ** 2)
            assert (nearest.shape, nearest.colour) == (blob.shape, blob.colour)
            assert abs(nearest.x - blob.x) < 0.3 and abs(nearest.y - blob.y) < 0.3 and abs(nearest.r - blob.r) < 0.2
            assert size_of(nearest.r) == size_of(blob.r)


def test_true_prompts_are_answered_yes():
    chosen, _, pictures = drawn()
    assert reward(pictures, chosen).eq(1.0).all()


def contradictions(prompt, rng):
    """Prompts of which one named fact is wrong in a picture of `prompt`."""
    for i, thing in enumerate(prompt.things):
        taken = {(t.shape, t.colour) for t in prompt.things}
        changes = [replace(thing, shape=rng.choice([s for s in SHAPES if s != thing.shape]))]
        if thing.colour:
            changes.append(replace(thing, colour=rng.choice([c for c in COLOURS if c != thing.colour])))
        if thing.size:
            changes.append(replace(thing, size={"small": "large", "large": "small"}[thing.size]))
        if thing.count > 1:
            changes.append(replace(thing, count=thing.count % 4 + 1 if thing.count < 4 else 3))
        for changed in changes:
            # "a square and a star" is no contradiction of a picture that has a star already.
            if (changed.shape, changed.colour) in taken - {(thing.shape, thing.colour)}:
                continue
            if any(changed.shape == t.shape and changed.colour is None for t in prompt.things if t is not thing):
                continue
            yield replace(prompt, things=(*prompt.things[:i], changed, *prompt.things[i + 1 :]))
    if prompt.relation:
        yield replace(prompt, relation=MIRROR[prompt.relation])


def test_contradicting_prompts_are_answered_no():
    chosen, scenes, pictures = drawn()
    readings, rng, count = read(pictures), random.Random(0), 0
    for prompt, reading, blobs in zip(chosen, readings, scenes, strict=True):
        for other in contradictions(prompt, rng):
            result = dict(zip(other.questions, answers(reading, other), strict=True))
            truth = {question: true_answer(question, blobs) for question in other.questions}
            assert result == truth, (prompt.text, other.text)
            assert not all(result.values()), (prompt.text, other.text)
            count += 1
    assert count > 2 * N


def test_answers_agree_with_the_layout_for_any_prompt():
    chosen, scenes, pictures = drawn()
    others = random.Random(1).sample(chosen, N)
    for other, reading, blobs in zip(others, read(pictures), scenes, strict=True):
        assert answers(reading, other) == [true_answer(question, blobs) for question in other.questions], other.text


def true_answer(question, blobs):
    """The answer from the layout itself."""

    def matching(thing):
        return [
            b for b in blobs
            if b.shape == thing.shape and thing.colour in (None, b.colour) and thing.size in (None, size_of(b.r))
        ]  # fmt: skip

    if question.kind == "total":
        return len(blobs) == question.total
    if question.kind == "count":
        return len(matching(question.thing)) == question.thing.count
    if question.kind == "has":
        return bool(matching(question.thing))
    right = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}[question.relation]
    for a in matching(question.thing):
        for b in matching(question.other):
            step = (b.x - a.x, b.y - a.y)
            along = step[0] * right[0] + step[1] * right[1]
            across = step[0] * right[1] + step[1] * right[0]
            if a is not b and along >= MIN_DISTANCE and along > abs(across):
                return True
    return False


def test_mush_gets_few_yes():
    chosen = drawn()[0][:300]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(300, 3, 32, 32, generator=generator) * 2.0 - 1.0
    clouds = F.interpolate(torch.rand(300, 3, 6, 6, generator=generator) * 2.0 - 1.0, size=32, mode="bicubic")
    assert float(reward(noise, chosen).mean()) < 0.02
    assert float(reward(clouds, chosen).mean()) < 0.1
    assert not reward(torch.ones(300, 3, 32, 32), chosen).any()
    assert not reward(torch.full((300, 3, 32, 32), torch.nan), chosen).any()


def test_an_object_too_many_and_a_smudge():
    blobs = scene(parse("a red circle left of a blue square"), 0, 0)
    more = draw([blobs, [*blobs, replace(blobs[0], y=27.0 if blobs[0].y < 16 else 5.0)]])
    smudged = more[:1].clone()
    smudged[:, :, -6:, -6:] = -1.0
    shares = reward(torch.cat((more, smudged)), ["a red circle left of a blue square"] * 3)
    questions = len(parse("a red circle left of a blue square").questions)
    assert float(shares[0]) == 1.0
    assert shares[1:].tolist() == pytest.approx([(questions - 1) / questions] * 2)


def test_reward_says_what_is_wrong():
    with pytest.raises(InputError, match="1 prompts for 2 pictures"):
        reward(torch.zeros(2, 3, 32, 32), ["a star"])
    with pytest.raises(InputError, match=r"the checker reads \(B, 3, 32, 32\)"):
        reward(torch.zeros(1, 1, 32, 32), ["a star"])
    with pytest.raises(InputError, match="'a cat'"):
        reward(torch.zeros(1, 3, 32, 32), ["a cat"])
    assert reward(torch.zeros(0, 3, 32, 32), []).shape == (0,)


@pytest.mark.parametrize("n", [10, 1000])
def test_a_thousand_pictures_take_one_pass(n, monkeypatch):
    """Objects are found once and laid over each shape once, however many pictures there are."""
    called = []

    def counted(name, function):
        def count(*args, **more):
            called.append(name)
            return function(*args, **more)

        return count

    monkeypatch.setattr(checker.ndimage, "label", counted("label", checker.ndimage.label))
    monkeypatch.setattr(checker, "coverage", counted("coverage", checker.coverage))
    chosen, _, pictures = drawn()
    assert reward(pictures[:n], chosen[:n]).shape == (n,)
    assert called == ["label", *["coverage"] * len(SHAPES)]
