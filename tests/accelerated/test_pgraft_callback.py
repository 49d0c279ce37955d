"""Handover at the cut in diffusers pipelines: against a loop written by hand, plain and accelerated."""

import math

import diffusers
import numpy as np
import pytest
import torch
from accelerated.calls import cached, call, off, taken_over
from pipelines import build
from repeats import repeats

from pgraft_fast import PGraftCallback, accelerate, restore
from pgraft_fast.errors import InputError

peft = pytest.importorskip("peft")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False),
    "euler": diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
    "dpm": diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="leading"),
}


def tuned(name, scale=3.0, **options):
    """A pipeline with a LoRA that matters."""
    pipe = build(name, **options)
    torch.manual_seed(1)
    config = peft.LoraConfig(target_modules=["to_q", "to_v"], r=4, lora_alpha=4 * scale, init_lora_weights=False)
    denoiser_of(pipe).add_adapter(config)
    return pipe


def denoiser_of(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def lora_is_on(pipe):
    layers = [
        layer for layer in denoiser_of(pipe).modules() if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer)
    ]
    assert layers
    return not any(layer.disable_adapters for layer in layers)


@torch.no_grad()
def by_hand(kind, steps, cut_timestep):
    """Latents of a loop that takes the tuned model down to `cut_timestep` and the base model from it on."""
    scheduler = type(SCHEDULERS[kind]).from_config(SCHEDULERS[kind].config)
    with_lora, base = tuned("sd"), cached("sd")
    words = with_lora.encode_prompt("a red cube", "cpu", 1, True)
    words = torch.cat([words[1], words[0]])
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    of_base = 0
    for t in scheduler.timesteps:
        left_to_base = float(t) <= cut_timestep
        of_base += left_to_base
        unet = base.unet if left_to_base else with_lora.unet
        without, out = unet(scheduler.scale_model_input(torch.cat([x, x]), t), t, words).sample.chunk(2)
        x = scheduler.step(without + 7.5 * (out - without), t, x).prev_sample
    return x.numpy(), of_base


# cut 0.25 of a table of 1000 is its entry 249: the last one of the noisier three quarters is 250.
@pytest.mark.parametrize(("kind", "steps", "of_base"), [
    ("ddim", 20, 5), ("euler", 20, 5), ("dpm", 20, 5), *repeats(("ddim", 50, 13)),
])  # fmt: skip
def test_the_same_as_by_hand(kind, steps, of_base):
    pipe = tuned("sd")
    pipe.scheduler = SCHEDULERS[kind]
    want, made = by_hand(kind, steps, 249)
    assert made == of_base
    for fast in (False, True, True):
        got = call(
            pipe, "sd", num_inference_steps=steps, output_type="latent", callback_on_step_end=PGraftCallback(0.25)
        ).picture
        assert np.abs(got - want).max() < 1e-3 * max(1.0, np.abs(want).max())
        assert lora_is_on(pipe) and (not fast or taken_over(pipe))
        if not fast:
            accelerate(pipe)


def drawn(pipe, name="sd", **more):
    return call(pipe, name, num_inference_steps=8, **more)


@pytest.mark.parametrize(
    ("name", "cut"), [*(("sd", cut) for cut in (0.0, 0.3, 0.97)), ("sdxl", 0.6), ("sd3", 0.3), ("sana", 0.3)]
)
def test_accelerated_or_not(name, cut):
    pipe = tuned(name)
    want, whole = drawn(pipe, name, callback_on_step_end=PGraftCallback(cut)), drawn(pipe, name)
    assert off(want, whole) == 0.0 if cut == 0.0 else off(want, whole) > 1e-3
    assert lora_is_on(pipe)
    accelerate(pipe)
    same = PGraftCallback(cut)
    for callback in (PGraftCallback(cut), None, same, same, None):
        got = drawn(pipe, name, callback_on_step_end=callback)
        assert off(got, whole if callback is None else want) < 1e-4
        assert lora_is_on(pipe)


@pytest.mark.parametrize("shift", [None, "dynamic"])
def test_flux(shift):
    pipe = tuned("flux", guidance_embeds=shift is not None)
    level = 2.0 * math.log(0.7 / 0.3)
    if shift is not None:
        for _ in range(2):
            with pytest.raises(InputError, match=r"^\w+: use_dynamic_shifting depends on the picture's "
                               r"size; PGraftCallback takes cut_logsnr= there instead of cut=$"):  # fmt: skip
                drawn(pipe, "flux", callback_on_step_end=PGraftCallback(0.3))
            accelerate(pipe)
        restore(pipe)
    else:
        # Without a shift the noise level is the share of the steps.
        a, b = (drawn(pipe, "flux", callback_on_step_end=callback) for callback in (PGraftCallback(0.3), levels(level)))
        assert off(a, b) == 0.0
    want = drawn(pipe, "flux", callback_on_step_end=levels(level))
    assert off(want, drawn(pipe, "flux")) > 1e-3
    accelerate(pipe)
    for _ in range(2):
        assert off(drawn(pipe, "flux", callback_on_step_end=levels(level)), want) < 1e-4


def levels(logsnr):
    return PGraftCallback(cut_logsnr=logsnr)


def test_noise_levels_of_a_shifted_flow():
    """Of a flow with shift 3 the last quarter of the steps begins at sigma 1/2."""
    pipe, seen = tuned("sd3"), []

    class Told(PGraftCallback):
        def switch(self, pipe, on):
            seen.append((on, float(pipe.scheduler.sigmas[pipe.scheduler.step_index])))
            super().switch(pipe, on)

    drawn(pipe, "sd3", callback_on_step_end=Told(0.25))
    (off_at, on_at), sigmas = seen, pipe.scheduler.sigmas
    assert off_at == (False, float(sigmas[sigmas <= 0.5].max())) and on_at == (True, 0.0)


@pytest.mark.parametrize("fast", [False, True])
def test_beyond_the_first_step(fast):
    """The base model's part cannot begin before the second step: the callback is first asked after the first one."""
    pipe = tuned("sd")
    if fast:
        accelerate(pipe)
    got = [drawn(pipe, callback_on_step_end=levels(value)) for value in (-30.0, -30.0, -5.0)]
    restore(pipe)
    # The first state of eight steps has a log-SNR of -4.
    for result in got:
        assert off(result, drawn(pipe, callback_on_step_end=PGraftCallback(0.97))) < 1e-4
    assert lora_is_on(pipe)


def test_a_level_that_a_step_has_exactly():
    pipe = tuned("sd")
    pipe.scheduler.set_timesteps(10)
    table = pipe.scheduler.alphas_cumprod.double()[pipe.scheduler.timesteps]
    for index, level in enumerate((table / (1 - table)).log().tolist()[1:], start=1):
        assert levels(level).step_of(pipe) == index
        assert levels(level + 1e-3).step_of(pipe) == index + 1


@pytest.mark.parametrize("fast", [False, True])
def test_no_lora(fast):
    pipe = build("sd")
    if fast:
        accelerate(pipe)
        drawn(pipe)
    for _ in range(2):
        with pytest.raises(InputError, match=r"^StableDiffusionPipeline has no LoRA on its denoiser; load one with "):
            drawn(pipe, callback_on_step_end=PGraftCallback(0.2))
    assert not hasattr(pipe, "_pgraft_fast") or not vars(pipe.unet).get("forward")


@pytest.mark.parametrize("cut", [1.0, -0.1, 2.0, float("nan")])
def test_a_cut_out_of_range(cut):
    with pytest.raises(InputError, match=r"^cut=\S+: a cut is the share of steps .* in \[0, 1\)$"):
        PGraftCallback(cut)


@pytest.mark.parametrize("arguments", [{}, {"cut": 0.2, "cut_logsnr": 1.0}])
def test_one_of_two_ways_to_say_it(arguments):
    with pytest.raises(InputError, match=r"^PGraftCallback needs cut or cut_logsnr, one of them$"):
        PGraftCallback(**arguments)


def test_a_scheduler_without_noise_levels():
    pipe = tuned("sd")
    del pipe.scheduler.alphas_cumprod
    with pytest.raises(InputError, match=r"^DDIMScheduler tells no noise levels"):
        levels(0.0).step_of(pipe)


@pytest.mark.parametrize("fast", [False, True])
def test_a_run_that_is_broken_off(fast):
    pipe, callback, made = tuned("sd"), PGraftCallback(0.5), []
    want = drawn(pipe, callback_on_step_end=callback)
    if fast:
        accelerate(pipe)
        drawn(pipe, callback_on_step_end=callback)
    layer = pipe.unet.conv_in

    def failing(x):
        made.append(lora_is_on(pipe))
        if len(made) == 7:
            raise RuntimeError("the seventh step fails")
        return type(layer).forward(layer, x)

    layer.forward = failing
    with pytest.raises(RuntimeError, match="seventh"):
        drawn(pipe, callback_on_step_end=callback)
    del layer.forward
    assert made == [True] * 4 + [False] * 3
    assert lora_is_on(pipe) == fast
    callback.reset(pipe)
    assert lora_is_on(pipe)
    assert off(drawn(pipe, callback_on_step_end=callback), want) < 1e-4


def test_image_to_image_hands_over_at_the_same_noise():
    """Strength 0.6 of 10 steps leaves six: those at noise above the cut are the LoRA's."""
    components = tuned("sd").components
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = SCHEDULERS["ddim"]
    seen, unet = [], pipe.unet
    hook = unet.register_forward_pre_hook(lambda module, args: seen.append((float(args[1]), lora_is_on(pipe))))
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    pipe("a cube", image=start, strength=0.6, num_inference_steps=10, output_type="latent",
         generator=torch.Generator().manual_seed(0), callback_on_step_end=PGraftCallback(0.25))  # fmt: skip
    hook.remove()
    assert len(seen) == 6 and all(on is (time > 249) for time, on in seen) and lora_is_on(pipe)
