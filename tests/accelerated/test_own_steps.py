"""Schedulers of diffusers that have no fast version: their own steps, outside of the pipeline's loop."""

import copy

import diffusers
import pytest
import torch
from accelerated.calls import another, call, off
from pipelines import build, call_arguments
from toy_pipeline import Habits, ToyPipeline, toy

from pgraft_fast import PGraftCallback, accelerate
from pgraft_fast.pipelines.accelerated.steps import OwnSteps, steps_of

STEPS = 6
# Those of continuous states that any loop can call.
NAMES = [
    "CMStochasticIterative", "CogVideoXDDIM", "DDIMInverse", "DDIMParallel", "DDPMParallel", "DEISMultistep",
    "DPMSolverMultistepInverse", "DPMSolverSinglestep", "EDMDPMSolverMultistep", "EDMEuler", "EulerAncestralDiscrete",
    "FlowMatchHeunDiscrete", "FlowMatchLCM", "HeunDiscrete", "IPNDM", "KDPM2AncestralDiscrete", "KDPM2Discrete",
    "LCM", "LMSDiscrete", "LTXEulerAncestralRF", "PNDM", "SASolver", "TCD", "UnCLIP", "UniPCMultistep",
]  # fmt: skip
LINE = "{}: calls run in the pipeline's own loop: its step is not that of a scheduler of diffusers"


def scheduler_of(name):
    return getattr(diffusers, f"{name}Scheduler")()


class Two:
    """A pipeline as it is and an accelerated one of the same networks."""

    def __init__(self, scheduler, cls=ToyPipeline, habits=None):
        self.plain, self.batch_sizes = cls(toy().net, scheduler, habits), []
        self.plain.set_progress_bar_config(disable=True)
        self.fast = copy.copy(self.plain)
        self.fast.scheduler = copy.deepcopy(scheduler)
        accelerate(self.fast)
        net = self.plain.net
        net.forward = lambda *args, own=net.forward: (self.batch_sizes.append(len(args[0])), own(*args))[1]

    def check(self, prompt, seed, generator=True, **more):
        """The same pictures, in the same calls of the network, by the same random numbers."""
        made = []
        for pipe in (self.plain, self.fast):
            self.batch_sizes.clear()
            torch.manual_seed(seed)
            own = torch.Generator().manual_seed(seed) if generator else None
            images = pipe(prompt, generator=own, num_inference_steps=STEPS, **more).images
            made.append((images, list(self.batch_sizes), torch.rand(3)))
        (wanted, theirs, noise), (images, ours, after) = made
        assert float((images - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))
        assert torch.equal(noise, after)
        return ours == theirs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("generator", [True, False])
def test_what_they_draw(name, generator, caplog):
    scheduler = scheduler_of(name)
    assert isinstance(steps_of(scheduler), OwnSteps)
    with caplog.at_level("INFO", logger="pgraft_fast"):
        two = Two(scheduler)
        for scale in (3.0, 1.0):
            two.check("a cube", 1, generator, guidance_scale=scale)
            for seed, prompt in enumerate(("two cubes", ["a ball", "three cones"])):
                assert two.check(prompt, seed, generator, guidance_scale=scale) or isinstance(prompt, list)
            assert two.check(["a cone", "a cube"], 5, generator, guidance_scale=scale)
    assert len(two.fast._pgraft_fast.known)
    assert not [record for record in caplog.records if record.name.startswith("pgraft_fast")]


@pytest.mark.parametrize("name", ["CogVideoXDPM", "KarrasVe"])
def test_steps_of_another_form(name, caplog):
    with caplog.at_level("INFO", logger="pgraft_fast"):
        pipe = accelerate(ToyPipeline(toy().net, scheduler_of(name)))
    assert [record.message for record in caplog.records] == [LINE.format(f"{name}Scheduler")]
    assert type(pipe.scheduler) is getattr(diffusers, f"{name}Scheduler")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sd", "PNDM"), ("sd", "UniPCMultistep"), ("sdxl", "EulerAncestralDiscrete"), ("sd", "HeunDiscrete")],
)
def test_pipelines_of_diffusers(name, kind):
    plain = another(name)
    plain.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(plain.scheduler.config)
    want = call(plain, name)
    pipe = build(name)
    pipe.scheduler = copy.deepcopy(plain.scheduler)
    accelerate(pipe)
    for _ in range(3):
        assert off(call(pipe, name), want) < 2e-5
    assert len(pipe._pgraft_fast.known)


@pytest.mark.parametrize("kind", ["PNDM", "HeunDiscrete", "UniPCMultistep", "LCM"])
def test_a_start_in_the_middle(kind):
    plain, pipe = (
        diffusers.StableDiffusionImg2ImgPipeline(**build("sd").components, requires_safety_checker=False)
        for _ in range(2)
    )
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for pipeline in (plain, pipe):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(pipeline.scheduler.config)
    accelerate(pipe)
    for seed in range(3):
        drawn = [
            pipeline("a cube", image=picture, strength=0.6, num_inference_steps=10, output_type="np",
                     generator=torch.Generator().manual_seed(seed)).images
            for pipeline in (plain, pipe)
        ]  # fmt: skip
        assert abs(drawn[0] - drawn[1]).max() < 2e-5
    assert len(pipe._pgraft_fast.known)


def _listened(unet):
    """What is switched in it, and what had been switched at each of its calls."""
    seen, calls = [], []
    unet.disable_adapters, unet.enable_adapters = lambda: seen.append("off"), lambda: seen.append("on")
    unet._hf_peft_config_loaded = True
    unet.forward = lambda *args, own=unet.forward, **kw: (calls.append(list(seen)), own(*args, **kw))[1]
    return seen, calls, []


@pytest.mark.parametrize("kind", ["UniPCMultistep", "EulerAncestralDiscrete", "HeunDiscrete"])
@pytest.mark.parametrize("cut", [0.25, 0.5])
def test_a_handover(kind, cut):
    """Steps of both sides of the cut go through the same scheduler."""
    made = []
    for fast in (False, True):
        pipe = build("sd")
        pipe.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(pipe.scheduler.config)
        if fast:
            accelerate(pipe)
        seen, calls, pictures = _listened(pipe.unet)
        for seed in range(3):
            calls.clear(), seen.clear()
            generator = torch.Generator().manual_seed(seed)
            done = pipe(**call_arguments("sd"), num_inference_steps=8, generator=generator,
                        callback_on_step_end=PGraftCallback(cut))  # fmt: skip
            pictures.append((done.images, [list(c) for c in calls]))
        made.append(pictures)
    for (wanted, theirs), (images, ours) in zip(*made, strict=True):
        assert abs(wanted - images).max() < 2e-5 and ours == theirs


class Touching(ToyPipeline):
    """Does something to its scheduler in its loop."""

    how = staticmethod(lambda scheduler, number: None)

    def _guided(self, x, t, label):
        self.how(self.scheduler, self.scheduler.timesteps.tolist().index(float(t)))
        return super()._guided(x, t, label)


def _scaled_levels(scheduler, number):
    if number == 3:
        name = "sigmas" if hasattr(scheduler, "sigmas") else "alphas_cumprod"
        setattr(scheduler, name, getattr(scheduler, name) * 0.99)


def _forgets(scheduler, number):
    if number == 3:
        scheduler.lower_order_nums = 0


def _back(scheduler, number):
    if number == 3:
        scheduler._step_index -= 1


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("UniPCMultistep", _scaled_levels), ("EulerAncestralDiscrete", _scaled_levels), ("DDIM", _scaled_levels),
        ("EulerDiscrete", _scaled_levels), ("DPMSolverMultistep", _forgets), ("UniPCMultistep", _forgets),
        ("EulerDiscrete", _back), ("FlowMatchEulerDiscrete", _back), ("UniPCMultistep", _back),
    ],
)  # fmt: skip
def test_a_loop_that_changes_its_scheduler(kind, how, caplog, monkeypatch):
    """Fast schedulers, too: their steps are worked out ahead."""
    monkeypatch.setattr(Touching, "how", staticmethod(how))
    with caplog.at_level("INFO", logger="pgraft_fast"):
        two = Two(scheduler_of(kind), Touching)
        for seed in range(3):
            assert two.check("a cube", seed)
    line = "Touching: such calls run in its own loop: it changes its scheduler between two steps"
    assert [record.message for record in caplog.records] == [line]


def test_a_step_of_somebody_else(caplog):
    """In the object, in the class, or in a class below: it runs in the pipeline's own loop, once a step."""
    made = []
    two = Two(scheduler_of("UniPCMultistep"))
    two.check("a cube", 1)
    for pipe in (two.plain, two.fast):
        pipe.scheduler.step = lambda *args, own=pipe.scheduler.step, **kw: (made.append(1), own(*args, **kw))[1]
    for seed in range(2):
        made.clear()
        assert two.check("a ball", seed) and len(made) == 2 * STEPS


def test_a_class_whose_step_was_replaced(monkeypatch):
    two, made = Two(scheduler_of("PNDM")), []
    two.check("a cube", 1), two.check("a cube", 2)
    own = diffusers.PNDMScheduler.step
    monkeypatch.setattr(diffusers.PNDMScheduler, "step", lambda *args, **kw: (made.append(1), own(*args, **kw))[1])
    assert two.check("a ball", 3)
    steps = len(made) // 2
    assert steps >= STEPS and len(made) == 2 * steps


class Halved(diffusers.UniPCMultistepScheduler):
    """Somebody's own."""

    def step(self, *args, **kwargs):
        done = super().step(*args, **kwargs)
        return (0.5 * done[0], *done[1:])


def test_a_class_of_somebody_else(caplog):
    with caplog.at_level("INFO", logger="pgraft_fast"):
        two = Two(Halved())
        assert all(two.check("a cube", seed) for seed in range(3))
    assert [record.message for record in caplog.records] == [LINE.format("Halved")]
    assert not len(two.fast._pgraft_fast.known)


def test_a_scheduler_that_is_put_there_later():
    two = Two(scheduler_of("UniPCMultistep"), habits=Habits(doubled=False))
    two.check("a cube", 1)
    for kind in ("EulerAncestralDiscrete", "DDIM", "PNDM"):
        for pipe in (two.plain, two.fast):
            pipe.scheduler = scheduler_of(kind)
        for seed in range(2):
            assert two.check("a ball", seed)
