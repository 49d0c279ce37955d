"""What a pipeline makes of final states: each sample's own, whatever is finished beside it and for which prompt."""

import numpy as np
import pytest
import torch
from pipelines import build

from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.tasks.pipeline import Finish

PROMPTS = ("a red cube", "two cats", "a dog")


def finish_of(pipe, at_once=8, **columns):
    facts = facts_of(Calls(pipe, PROMPTS, {}, columns))
    return Finish(Driven.of(facts), PROMPTS, at_once), torch.randn(5, *facts.shape)


def watched(pipe):
    """Rows of each call of the decoder."""
    rows, decode = [], pipe.vae.decode
    pipe.vae.decode = lambda z, *args, **kwargs: rows.append(len(z)) or decode(z, *args, **kwargs)
    return rows


@pytest.mark.parametrize(("at_once", "rows"), [(8, [5]), (2, [2, 2, 1]), (1, [1] * 5)])
def test_samples_of_any_prompts_are_finished_together(at_once, rows):
    pipe = build("sd")
    finish, states = finish_of(pipe, at_once)
    seen = watched(pipe)
    finished = finish.media(states, [PROMPTS[row % 3] for row in range(5)])
    assert seen == rows
    wanted = pipe.vae.decode(states / pipe.vae.config.scaling_factor)[0].detach() / 2.0 + 0.5
    for medium, picture in zip(finished, wanted.clamp(0.0, 1.0).permute(0, 2, 3, 1).numpy(), strict=True):
        assert np.abs(medium - 255.0 * picture).max() <= 0.51


def test_a_pipeline_that_sorts_what_it_made():
    """As AudioLDM 2 does by its prompt: samples go one by one then, or each would get another one's reward."""
    pipe = build("sd")
    process = pipe.image_processor.postprocess

    def sorted_by_brightness(image, *args, **kwargs):
        made = process(image, *args, **kwargs)
        return sorted(made, key=lambda picture: float(np.asarray(picture).mean()), reverse=True)

    pipe.image_processor.postprocess = sorted_by_brightness
    finish, states = finish_of(pipe)
    together = finish.media(states, [PROMPTS[0]] * 5)
    for row, medium in enumerate(together):
        assert np.array_equal(medium, finish.media(states[row : row + 1])[0])


def test_a_pipeline_whose_end_depends_on_the_prompt():
    """Each prompt has a size of its own, and so has what is made of its states."""
    pipe = build("sd")
    process, sizes = pipe.image_processor.postprocess, []

    def postprocess(image, *args, **kwargs):
        sizes.append(len(image))
        made = process(image, *args, **kwargs)
        # What differs from call to call with the number of its prompt.
        return [np.asarray(picture) if len(pipe.last_prompt) < 10 else 255 - np.asarray(picture) for picture in made]

    encode = pipe.encode_prompt

    def encode_prompt(prompt, *args, **kwargs):
        pipe.last_prompt = prompt if isinstance(prompt, str) else prompt[0]
        return encode(prompt, *args, **kwargs)

    pipe.image_processor.postprocess, pipe.encode_prompt, pipe.last_prompt = postprocess, encode_prompt, ""
    finish, states = finish_of(pipe)
    sizes.clear()
    names = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    finished = finish.media(states, names)
    assert sorted(sizes) == [2, 3]
    plain = finish.media(states, [PROMPTS[1]] * 5)
    for medium, other, name in zip(finished, plain, names, strict=True):
        assert np.array_equal(medium, 255 - other if name == PROMPTS[0] else other)
