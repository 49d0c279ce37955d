"""Loops whose later steps are made by other networks, or in another number of calls: each stage is explained."""

import copy

import pytest
import torch
from every_pipeline import build, call_of, prompts_of
from toy_pipeline import Habits, ToyPipeline, toy

from pgraft_fast import PGraftCallback, accelerate
from pgraft_fast.pipelines.accelerated.runner import Runner
from pgraft_fast.pipelines.calls import Calls

STEPS = 8


class Experts(ToyPipeline):
    """Networks by the number of the step: `plan` has a letter for each, guided where it is a capital one."""

    plan = "AAABBBBB"

    def __init__(self, net, other, scheduler, habits=None):
        super().__init__(net, scheduler, habits)
        self.register_modules(other=other)
        self.scale = 3.0

    def _guided(self, x, t, label):
        letter = self._letter(x, t)
        net = self.net if letter in "Aa" else self.other
        if letter.islower():
            return net(x, t, label)[0]
        null, out = net(x, t, 0.0 * label)[0], net(x, t, label)[0]
        scale = self._guidance if letter == "A" else self._guidance - 1.0
        return null + scale * (out - null)

    def _letter(self, x, t):
        return self.plan[self.scheduler.timesteps.tolist().index(float(t))]


class Undecided(Experts):
    """Whose network depends on the state."""

    def _letter(self, x, t):
        return "A" if float(x.mean()) > self.bound else "B"


class Noticing:
    """A progress bar that counts."""

    made = 0

    def update(self, n=1):
        self.made += n

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def pair(cls=Experts, scheduler="euler", plan=None):
    """Two equal pipelines, the second one accelerated, and what was called in each."""
    base, other = toy(Habits(doubled=False), scheduler), toy(seed=5).net
    pipes, called = [], []
    for _ in range(2):
        pipe = cls(copy.deepcopy(base.net), copy.deepcopy(other), copy.deepcopy(base.scheduler), Habits(doubled=False))
        pipe.set_progress_bar_config(disable=True)
        pipe.plan = pipe.plan if plan is None else plan
        called.append(counted(pipe))
        pipes.append(pipe)
    return pipes[0], accelerate(pipes[1]), called


def counted(pipe):
    """Networks in the order of their calls."""
    called = []
    for name in ("net", "other"):
        net = getattr(pipe, name)
        net.forward = lambda *args, name=name, forward=net.forward: (called.append(name), forward(*args))[1]
    return called


def drawn(pipe, prompt, seed, **more):
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, generator=generator, num_inference_steps=STEPS, **more).images


def check(plain, pipe, called, calls):
    """The same pictures by the same networks, in their order."""
    for prompt, seed, more in calls:
        called[0].clear(), called[1].clear()
        wanted, pictures = drawn(plain, prompt, seed, **more), drawn(pipe, prompt, seed, **more)
        assert float((pictures - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))
        yield called[0] == called[1]


CALLS = [("a cube", 1, {}), ("two cubes", 2, {}), ("a ball", 3, {"num_images_per_prompt": 2}), ("balls", 4, {})]


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "flow", "dpm"])
@pytest.mark.parametrize(
    ("plan", "stages"),
    [("AAABBBBB", 2), ("AABBAABB", 4), ("AAAAAAbb", 2), ("AAAaaaaa", 2), ("aaAAAAaa", 3), ("AAaaBBbb", 4)],
)
def test_each_stage_is_explained(plan, stages, scheduler, caplog, monkeypatch):
    plain, pipe, called = pair(scheduler=scheduler, plan=plan)
    runs, run = [], Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, of, x, *steps: (runs.append(steps), run(self, of, x, *steps))[1])
    with caplog.at_level("INFO", logger="pgraft_fast"):
        assert list(check(plain, pipe, called, CALLS)) == [True] * 4
    assert not caplog.records
    # One prompt in a call, and two: the second and the fourth call are known.
    assert len(runs) == 2 * stages and sum(last - first for first, last in runs) == 2 * STEPS
    loop = [len(entry.understood.stages) for entry in pipe._pgraft_fast.known._known.values()]
    assert loop == [stages] * 2


@pytest.mark.parametrize("scale", [2.0, 5.5])
def test_another_scale_is_watched_anew(scale):
    """Two stages have two scales: one number says nothing of both."""
    plain, pipe, called = pair()
    calls = [("a cube", 1, {"guidance_scale": number}) for number in (3.0, scale, scale, 3.0)]
    assert list(check(plain, pipe, called, calls)) == [True] * 4
    assert len(pipe._pgraft_fast.known) == 2


@pytest.mark.parametrize("plan", ["ABBBBBBB", "AAAAAAAB", "AAABAAAA", "ABABABAB"])
def test_a_stage_of_one_step_is_left(plan, caplog):
    plain, pipe, called = pair(plan=plan)
    with caplog.at_level("INFO", logger="pgraft_fast"):
        assert list(check(plain, pipe, called, CALLS[:2])) == [True] * 2
    (line,) = [record.message for record in caplog.records]
    assert line == "Experts: such calls run in its own loop: its calls of networks change"
    assert not len(pipe._pgraft_fast.known)


def test_a_network_that_the_state_chooses(caplog):
    """Understood or not: never another picture."""
    plain, pipe, called = pair(Undecided)
    with torch.no_grad():
        noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)).mean()
    for bound in (float(noise) - 0.05, -10.0, 0.0, 0.1):
        plain.bound = pipe.bound = bound
        for seed in range(12):
            assert all(isinstance(same, bool) for same in check(plain, pipe, called, [("a cube", seed, {})]))


def test_the_bar_counts_each_step_once():
    _, pipe, _ = pair(plan="AAABBBBB")
    pipe.set_progress_bar_config(disable=False)
    for seed in range(3):
        bar = Noticing()
        pipe.progress_bar = lambda iterable=None, total=None, bar=bar: bar
        drawn(pipe, "a cube", seed)
        assert bar.made in (0, STEPS)


@pytest.mark.parametrize("cut", [0.0, 0.1, 0.5, 0.9, 0.95])
def test_a_handover_in_any_stage(cut, monkeypatch):
    """Wan 2.2 with a LoRA on its first expert: within its steps, at the boundary and in the second expert's."""
    peft = pytest.importorskip("peft")
    pipes = []
    for _ in range(2):
        pipe = build("wan22")
        torch.manual_seed(1)
        targets = peft.LoraConfig(target_modules=["to_q", "to_v"], r=4, lora_alpha=40, init_lora_weights=False)
        pipe.transformer.add_adapter(targets)
        pipes.append(pipe)
    plain, pipe = pipes[0], accelerate(pipes[1])
    offs, switch = [], PGraftCallback.switch
    monkeypatch.setattr(PGraftCallback, "switch", lambda self, pipe, on: (offs.append(not on), switch(self, pipe, on)))
    for number, seed in ((0, 1), (1, 2), (0, 3)):
        latents, times_off = [], []
        for pipeline in (plain, pipe):
            arguments = Calls(pipeline, prompts_of("wan22"), call_of("wan22")).of(number, 1, [seed], STEPS)
            arguments |= {"output_type": "latent", "callback_on_step_end": PGraftCallback(cut)}
            latents.append(pipeline(**arguments).frames)
            times_off.append(sum(offs))
            offs.clear()
        assert float((latents[0] - latents[1]).abs().max()) <= 1e-5 * float(latents[0].abs().max())
        assert times_off[0] == times_off[1]
    assert len(pipe._pgraft_fast.known) == 1


def test_an_interrupt_within_a_stage():
    """The second expert is then not asked, and the call is not remembered."""
    pipe = accelerate(build("wan22"))
    arguments = Calls(pipe, prompts_of("wan22"), call_of("wan22")).of(0, 1, [1], STEPS) | {"output_type": "latent"}
    pipe(**arguments)
    called, forward = [], pipe.transformer_2.forward
    pipe.transformer_2.forward = lambda *args, **kwargs: (called.append(1), forward(*args, **kwargs))[1]
    first = pipe.transformer.forward

    def interrupting(*args, **kwargs):
        pipe._interrupt = True
        return first(*args, **kwargs)

    pipe(**arguments)
    assert called
    called.clear()
    pipe.transformer.forward = interrupting
    pipe(**arguments)
    assert not called
    pipe.transformer.forward = first
    pipe(**arguments)
    assert called
