"""Loops that no library has, accelerated: the same pictures, whether they are explained or left as they are."""

import copy
import dataclasses
import gc
import random
import weakref
from typing import ClassVar

import pytest
import torch
from diffusers import ImagePipelineOutput
from toy_pipeline import SCHEDULERS, Habits, ToyNet, ToyPipeline, toy

from pgraft_fast import accelerate
from pgraft_fast.pipelines.accelerated.trajectory import Trajectory

# What cannot be explained, and why.
WHY = {
    "sideways": "argument 0 is neither the state, nor a function of the time",
    "constant": "argument 0 is neither the state, nor a function of the time",
    "edits": "it changes the state between two steps",
    "twice": "it changes its scheduler between two steps",
    "random": "its output is no sum of the denoiser's answers",
    "momentum": "its output is no sum of the denoiser's answers",
    "counted": "its output is no sum of the denoiser's answers",
}


def drawn(pipe, prompt, seed, **more):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, generator=generator, **more).images


def check(pipe, plain, calls):
    """The same from both."""
    for prompt, seed, more in calls:
        wanted, actual = drawn(plain, prompt, seed, **more), drawn(pipe, prompt, seed, **more)
        assert float((actual - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("seed", range(100))
def test_drawn_loops(seed):
    rng = random.Random(seed)
    habits = Habits(**{field.name: rng.random() < 0.25 for field in dataclasses.fields(Habits)})
    scheduler, weights = rng.choice(list(SCHEDULERS)), rng.randrange(10)
    plain, pipe = (toy(habits, scheduler, weights) for _ in range(2))
    accelerate(pipe)
    steps, count = rng.randrange(2, 7), 1 if habits.single else rng.randrange(1, 3)
    common = {"num_inference_steps": steps, "num_images_per_prompt": count}
    scales = [common | {"guidance_scale": scale} for scale in (1.0, 4.0, 6.0)]
    check(pipe, plain, [(f"picture {number}", number, options) for options in scales for number in range(3)])
    left = any(getattr(habits, name) for name in WHY)
    assert left or habits.rescaled or len(pipe._pgraft_fast.known)


@pytest.mark.parametrize("habit", WHY)
def test_why_a_loop_is_left(habit, caplog):
    plain, pipe = (toy(Habits(**{habit: True}), "euler") for _ in range(2))
    with caplog.at_level("INFO", logger="pgraft_fast"):
        accelerate(pipe)
        check(pipe, plain, [("a cube", 1, {}), ("two cubes", 2, {})])
    (line,) = {record.message.partition(" (off")[0] for record in caplog.records}
    assert line == f"ToyPipeline: such calls run in its own loop: {WHY[habit]}"
    assert not len(pipe._pgraft_fast.known) and len(caplog.records) == 1


class Returning(ToyPipeline):
    """Whose result is more than what its last state tells."""

    returned = "output"

    def __call__(self, prompt, guidance_scale=3.0, num_inference_steps=4, generator=None):
        x = torch.randn(1, 3, 4, 4, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        label, sums = torch.tensor([len(prompt) / 10.0]), 0.0
        self._guidance = guidance_scale
        with torch.no_grad():
            for t in self.scheduler.timesteps:
                out = self._guided(x, t, label)
                done = self.scheduler.step(out, t, x, return_dict=False)
                x, sums = done[0], sums + done[0].mean()
                if self.returned == "x_0":
                    x, x_0 = done
        results = {"output": out, "sums": x + sums, "x_0": 0.5 * x + 0.5 * x_0 if self.returned == "x_0" else None}
        return ImagePipelineOutput(images=results[self.returned])


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        ("output", "its result depends on more than the last state"),
        ("sums", "its result depends on more than the last state"),
        ("x_0", "without it the pipeline raises ValueError: not enough values to unpack (expected 2, got 1)"),
    ],
)
def test_a_result_of_more_than_the_last_state(returned, why, caplog):
    pipes = []
    for _ in range(2):
        base = toy()
        pipes.append(Returning(base.net, base.scheduler))
        pipes[-1].returned = returned
    plain, pipe = pipes
    with caplog.at_level("INFO", logger="pgraft_fast"):
        accelerate(pipe)
        check(pipe, plain, [("a cube", 1, {}), ("two cubes", 2, {}), ("a ball", 3, {})])
    assert [record.message for record in caplog.records] == [f"Returning: such calls run in its own loop: {why}"]


class Ending(ToyPipeline):
    """Guided in its first steps alone."""

    guided_steps = 3

    def _guided(self, x, t, label):
        number = self.scheduler.timesteps.tolist().index(float(t))
        return super()._guided(x, t, label) if number < self.guided_steps else self.net(x, t, label)[0]


@pytest.mark.parametrize("guided", range(1, 6))
@pytest.mark.parametrize("doubled", [False, True])
def test_a_loop_that_changes_on_its_way(guided, doubled, caplog):
    """Both parts are explained but where one is a single step."""
    plain, pipe = (Ending(toy().net, toy().scheduler, Habits(doubled=doubled)) for _ in range(2))
    plain.guided_steps = pipe.guided_steps = guided
    pipe.set_progress_bar_config(disable=True), plain.set_progress_bar_config(disable=True)
    pipe.net.load_state_dict(plain.net.state_dict())
    with caplog.at_level("INFO", logger="pgraft_fast"):
        accelerate(pipe)
        check(pipe, plain, [("a cube", 1, {"num_inference_steps": 6}), ("two cubes", 2, {"num_inference_steps": 6})])
    left = guided in (1, 5)
    assert len(caplog.records) == left and len(pipe._pgraft_fast.known) == (not left)


def test_the_scale_of_guidance_is_taken_from_the_call():
    """Another scale than that of the watched call: from its second step on, and digit by digit."""
    plain, pipe = toy(), toy()
    accelerate(pipe)
    seen = []
    pipe.net.forward = lambda *args, call=pipe.net.forward: (seen.append(1), call(*args))[1]
    for scale in (3.0, 3.123456789, 7.5, 3.123456789):
        check(pipe, plain, [("a cube", 1, {"guidance_scale": scale})])
    check(pipe, plain, [("a cube", 1, {"guidance_scale": 1.0})] * 2)
    assert len(seen) == 6 * 4


def test_networks_that_are_no_longer_used_are_not_kept():
    pipe = accelerate(toy())
    for seed in range(2):
        drawn(pipe, "a cube", seed)
    assert len(pipe._pgraft_fast.known)
    net = weakref.ref(pipe.net)
    pipe.net = toy(seed=1).net
    check(pipe, toy(seed=1), [("a cube", 1, {}), ("two cubes", 2, {})])
    gc.collect()
    assert net() is None


class Knob:
    """An argument that no library knows."""


def test_an_argument_of_which_nothing_is_known(caplog):
    plain, pipe = toy(), toy()
    with caplog.at_level("INFO", logger="pgraft_fast"):
        accelerate(pipe)
        check(pipe, plain, [("a cube", 1, {"picture": Knob()})] * 3)
    line = "ToyPipeline: such calls run in its own loop: an argument is Knob, of which nothing is known"
    assert [record.message for record in caplog.records] == [line]


@pytest.mark.parametrize("how", ["negated", "doubled", "rescaled"])
def test_a_pipeline_that_is_set_otherwise(how):
    """By an attribute of its own, which no argument tells."""
    plain, pipe = toy(), toy()
    accelerate(pipe)
    check(pipe, plain, [("a cube", 1, {}), ("two cubes", 2, {})])
    for pipeline in (plain, pipe):
        pipeline.habits = Habits(**{how: not getattr(pipeline.habits, how)})
    check(pipe, plain, [("a cube", 1, {}), ("two cubes", 2, {})])
    for pipeline in (plain, pipe):
        pipeline.habits = Habits()
    check(pipe, plain, [("a cube", 1, {}), ("two cubes", 2, {})])


class Tripled(ToyPipeline):
    """Asks for a third answer where somebody outside says so."""

    requests: ClassVar[list[int]] = []

    def _guided(self, x, t, label):
        if not self.requests:
            return super()._guided(x, t, label)
        time, labels = t.expand(3 * len(x)), torch.cat((0.0 * label, label, 0.5 * label))
        null, out, half = self.net(torch.cat((x, x, x)), time, labels)[0].chunk(3)
        return null + 2.0 * (out - null) + half


def test_rows_that_were_not_there_before():
    plain, pipe = (Tripled(toy().net, toy().scheduler) for _ in range(2))
    accelerate(pipe)
    calls = [("a cube", 1, {}), ("two cubes", 2, {})]
    check(pipe, plain, calls)
    Tripled.requests.append(1)
    try:
        check(pipe, plain, calls)
    finally:
        Tripled.requests.clear()
    check(pipe, plain, calls)


def test_numbers_in_tensors_are_told_apart():
    plain, pipe = toy(), toy()
    accelerate(pipe)
    for scale in (2.0, 2.0, 5.0, 5.0):
        check(pipe, plain, [("a cube", 1, {"guidance_scale": torch.tensor(scale)})])


class Hinted(ToyNet):
    """Takes another network's answer."""

    def forward(self, state, time, label, hint):
        return (super().forward(state, time, label)[0] + 0.3 * hint.flip(-1),)


class Chained(ToyPipeline):
    """Its first network answers in the shape of the states, and is not what `scheduler.step` gets."""

    def __init__(self, net, second, scheduler):
        super().__init__(net, scheduler)
        self.register_modules(second=second)

    def _guided(self, x, t, label):
        hint = self.second(x, t, label)[0]
        if self._guidance <= 1.0:
            return self.net(x, t, label, hint)[0]
        answers = [self.net(x, t, own, hint)[0] for own in (0.0 * label, label)]
        return self._combined(*answers)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "flow", "dpm"])
def test_a_network_whose_answer_another_one_takes(scheduler):
    base, second = toy(scheduler=scheduler), toy(seed=1).net
    plain, pipe = (Chained(Hinted(), second, copy.deepcopy(base.scheduler)) for _ in range(2))
    for pipeline in (plain, pipe):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.net.load_state_dict(base.net.state_dict())
    accelerate(pipe)
    for scale in (1.0, 3.0):
        check(pipe, plain, [(words, seed, {"guidance_scale": scale}) for seed, words in enumerate(("a", "bb", "ccc"))])
    assert len(pipe._pgraft_fast.known) == 3


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_step_that_would_be_another_one(scheduler, monkeypatch, caplog):
    """Whatever is wrong in a loop of ours is seen before it draws a picture."""
    monkeypatch.setattr(Trajectory, "_guidance", lambda self: (2.0 * self.explanation.scale, 0.0))
    plain, pipe = (toy(scheduler=scheduler) for _ in range(2))
    with caplog.at_level("INFO", logger="pgraft_fast"):
        accelerate(pipe)
        check(pipe, plain, [("a cube", 1, {}), ("two cubes", 2, {})])
    line = "ToyPipeline: such calls run in its own loop: outside of it a step is another one"
    assert [record.message for record in caplog.records] == [line]


class Greedy(ToyNet):
    """Takes what it uses out of its arguments, or writes into them."""

    def forward(self, state, time, label, shifts=None, taken=None, writes=False):
        out = super().forward(state, time, label)[0]
        if shifts:
            out = out + shifts.pop(0)
        if taken and "scale" in taken:
            out = out * taken.pop("scale")
        if writes:
            label.mul_(1.01)
        return (out,)


class Feeding(ToyPipeline):
    """Gives its network lists and dicts that it empties. The dict of both answers of an iteration is the same."""

    writes = False

    def _guided(self, x, t, label):
        shifts, kept = [torch.full((3, 1, 1), 0.3)], {}
        answers = []
        for scale, own in ((0.5, 0.0 * label), (1.5, label)):
            kept["scale"] = torch.tensor(scale)
            answers.append(self.net(x, t, own.clone(), shifts=shifts.copy(), taken=kept, writes=self.writes)[0])
        return self._combined(*answers)


@pytest.mark.parametrize("writes", [False, True])
def test_networks_that_change_their_arguments(writes, caplog):
    base = toy()
    plain, pipe = (Feeding(Greedy(), copy.deepcopy(base.scheduler)) for _ in range(2))
    for pipeline in (plain, pipe):
        pipeline.net.load_state_dict(base.net.state_dict())
        pipeline.writes = writes
    with caplog.at_level("INFO", logger="pgraft_fast"):
        accelerate(pipe)
        check(pipe, plain, [("a cube", 1, {}), ("two cubes", 2, {}), ("a ball", 3, {"num_inference_steps": 7})])
    line = "Feeding: such calls run in its own loop: its networks write into their arguments"
    assert {record.message for record in caplog.records} == ({line} if writes else set())
    assert bool(len(pipe._pgraft_fast.known)) != writes
