"""Schedulers that are not a pipeline's own, and pipelines whose loop is not known."""

import diffusers
import numpy as np
import pytest
import torch
from accelerated.calls import call, check_same, off, taken_over
from diffusers import StableDiffusionPipeline
from pipelines import build
from toy_pipeline import ToyPipeline, toy

from pgraft_fast import accelerate, restore, schedulers

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FAST = {
    "euler": diffusers.EulerDiscreteScheduler(**BETAS),
    "euler v": diffusers.EulerDiscreteScheduler(**BETAS, prediction_type="v_prediction", timestep_spacing="trailing"),
    "euler karras": diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True),
    "dpm 1": diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=1),
    "dpm 2": diffusers.DPMSolverMultistepScheduler(**BETAS),
    "dpm 2 karras v": diffusers.DPMSolverMultistepScheduler(
        **BETAS, use_karras_sigmas=True, prediction_type="v_prediction"
    ),
    "dpm 3": diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=3),
    "dpm sde": diffusers.DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"),
    "dpm noise": diffusers.DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
    ),
    "ddpm": diffusers.DDPMScheduler(**BETAS, clip_sample=False),
    "ddpm clipped": diffusers.DDPMScheduler(**BETAS, clip_sample=True),
    "ddim thresholded": diffusers.DDIMScheduler(**BETAS, clip_sample=False, thresholding=True, sample_max_value=2.0),
    "ddim zero snr": diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, rescale_betas_zero_snr=True, prediction_type="v_prediction",
        timestep_spacing="trailing",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return build("sd")


@pytest.mark.parametrize("kind", FAST)
def test_stable_diffusion_with(pipe, kind):
    pipe.scheduler = FAST[kind]
    check_same(pipe, "sd", num_inference_steps=6)
    if kind in ("dpm sde", "ddpm"):
        check_same(pipe, "sd", None, num_inference_steps=3)
    assert pipe.scheduler is FAST[kind]


@pytest.mark.parametrize("kind", ["euler", "dpm 2", "ddpm"])
def test_pixart_with(kind):
    pipe = build("pixart")
    pipe.scheduler = FAST[kind]
    check_same(pipe, "pixart", num_inference_steps=5)


@pytest.mark.parametrize("kind", ["ddim thresholded", "ddpm"])
def test_a_single_step_of_pixart(kind):
    """Of one step it takes the predicted x_0: also after a call of several steps."""
    pipe = build("pixart")
    pipe.scheduler = FAST[kind]
    want = call(pipe, "pixart", num_inference_steps=1)
    accelerate(pipe)
    for steps in (3, 1, 3, 1):
        got = call(pipe, "pixart", num_inference_steps=steps)
    assert off(got, want) < 1e-4


@pytest.mark.parametrize("name", ["PNDMScheduler", "UniPCMultistepScheduler", "LCMScheduler"])
def test_a_scheduler_without_a_fast_version(name, caplog):
    pipe = build("sd")
    pipe.scheduler = getattr(diffusers, name)(**BETAS)
    own = pipe.scheduler
    want = call(pipe, "sd", num_inference_steps=6)
    with caplog.at_level("INFO", logger="pgraft_fast"):
        accelerate(pipe)
        for _ in range(2):
            assert off(call(pipe, "sd", num_inference_steps=6), want) < 2e-5
    assert pipe.scheduler is own and not caplog.records and len(pipe._pgraft_fast.known)


class DDIMScheduler(diffusers.DDIMScheduler):
    """A scheduler of the user's under a name of diffusers'."""

    def step(self, *args, **kwargs):
        done = super().step(*args, **kwargs)
        return (done[0] * 0.9, *done[1:]) if isinstance(done, tuple) else done


def test_a_scheduler_of_the_users_stays():
    pipe = build("sd")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    check_same(pipe, "sd", taken=False)


class ShiftedPipeline(StableDiffusionPipeline):
    """A user's pipeline with a loop of its own."""

    def __call__(self, *args, **kwargs):
        with torch.no_grad():
            latents = torch.ones(1, 4, 8, 8)
            self.scheduler.set_timesteps(6)
            words = self.encode_prompt("a red cube", "cpu", 1, False)[0]
            for t in self.scheduler.timesteps:
                out = self.unet(latents + 0.01, t, words).sample
                latents = self.scheduler.step(out, t, latents).prev_sample
            picture = self.vae.decode(latents).sample.permute(0, 2, 3, 1).numpy()
        return (picture,)


def test_a_users_own_loop(caplog):
    pipe = ShiftedPipeline(**build("sd").components, requires_safety_checker=False)
    want = call(pipe, "sd")
    with caplog.at_level("INFO", logger="pgraft_fast"):
        accelerate(pipe)
        for _ in range(2):
            assert off(call(pipe, "sd"), want) < 1e-4
    assert isinstance(pipe.scheduler, schedulers.FastDDIMScheduler)
    assert type(pipe).__name__ == "ShiftedPipeline" and isinstance(pipe, ShiftedPipeline)
    assert [record.message for record in caplog.records] == [
        "ShiftedPipeline: such calls run in its own loop: argument 0 is neither the state, nor a function of the time"
    ]
    restore(pipe)
    assert off(call(pipe, "sd"), want) == 0.0


class Sensor(torch.nn.Module):
    """A network that looks at the state and answers something else than a tensor."""

    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = torch.nn.Parameter(torch.zeros(1)), answer

    def forward(self, state):
        return self.answer


class Sensing(ToyPipeline):
    """Asks it at every step."""

    def __init__(self, net, sensor, scheduler):
        super().__init__(net, scheduler)
        self.register_modules(sensor=sensor)

    def _guided(self, x, t, label):
        self.sensor(x)
        return super()._guided(x, t, label)


ANSWERS = (None, (), {}, 0.5, "none", object(), {"score": 0.5}, [], (None, 1))


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_a_network_whose_answer_is_no_tensor(answer, caplog):
    pipe = Sensing(toy().net, Sensor(answer), toy().scheduler)
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for step in (lambda: None, lambda: accelerate(pipe), lambda: None):
        step()
        with caplog.at_level("INFO"):
            pictures.append(pipe("a cat", generator=torch.Generator().manual_seed(1)).images)
    assert all(torch.allclose(picture, pictures[0], atol=1e-5) for picture in pictures[1:])
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("Sensing: such calls run in its own loop: it")


def test_image_to_image(caplog):
    components = build("sd").components
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))

    def drawn():
        generator = torch.Generator().manual_seed(0)
        return pipe("a cube", image=start, strength=0.6, num_inference_steps=8, generator=generator,
                    output_type="np").images  # fmt: skip

    want = drawn()
    with caplog.at_level("INFO", logger="pgraft_fast"):
        accelerate(pipe)
        for _ in range(2):
            assert np.abs(drawn() - want).max() < 1e-4
    assert taken_over(pipe) and not caplog.records
    # The pipeline from which the parts came keeps its scheduler.
    assert type(components["scheduler"]) is diffusers.DDIMScheduler
    restore(pipe)
    assert np.array_equal(drawn(), want)


def test_two_pipelines_of_the_same_parts():
    text = build("sd")
    image = diffusers.StableDiffusionImg2ImgPipeline(**text.components, requires_safety_checker=False)
    want = call(text, "sd")
    accelerate(text), accelerate(image)
    assert off(call(text, "sd"), want) < 1e-4
    restore(text)
    assert isinstance(image.scheduler, schedulers.FastDDIMScheduler)
    assert off(call(text, "sd"), want) == 0.0


def test_a_scheduler_that_is_fast_already(pipe):
    pipe.scheduler = diffusers.DDIMScheduler(**BETAS)
    want = call(pipe, "sd")
    pipe.scheduler = own = schedulers.FastDDIMScheduler(**BETAS)
    accelerate(pipe)
    for _ in range(2):
        assert off(call(pipe, "sd"), want) < 1e-4
    assert taken_over(pipe) and pipe.scheduler is own
    restore(pipe)
    assert pipe.scheduler is own
