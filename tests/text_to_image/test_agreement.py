"""The call that is watched at the start of a run: settings that act alike pass, others are refused by name."""

import shutil

import diffusers
import pytest
import torch
from pipelines import build
from text_runs import text_config

from pgraft_fast.cli import main
from pgraft_fast.errors import InputError
from pgraft_fast.tasks.text_to_image import Parts, text_task
from pgraft_fast.text_to_image import PromptFile
from pgraft_fast.text_to_image.agreement import Asked, check_agreement

NAMES = ("sd", "sdxl", "sd3", "flux")
PROMPTS = PromptFile(("a red cube", "two cats"), ("", ""))


def check(pipe, *, guidance=3.0, negative=None, dtype=torch.float32, height=16, width=16):
    """As a run begins. Returns the task and the decoder."""
    pipe.to(dtype)
    parts = Parts(
        pipe=pipe, train=PROMPTS, held_out=PROMPTS, height=height, width=width, guidance=guidance,
        negative_prompt=negative, max_sequence_length=64, dtype=dtype,
    )  # fmt: skip
    task, decoder = text_task(parts)
    scheduler = pipe.scheduler
    asked = Asked("two cats", 1, negative, height, width, 64)
    check_agreement(pipe, task.model, decoder, task.schedule, task.parameterization, asked)
    assert pipe.scheduler is scheduler and "step" not in vars(scheduler)
    return task, decoder


def changed(pipe, part, **config):
    """With other values in a part's config, as its file would have them."""
    getattr(pipe, part).register_to_config(**config)
    return pipe


def rebuilt(net, **config):
    """The network made anew with other values, random weights."""
    torch.manual_seed(1)
    given = {key: value for key, value in net.config.items() if not key.startswith("_")}
    return type(net)(**{**given, **config}).eval()


CALLS = (
    {"guidance": 0.5}, {"negative": "dark"}, {"negative": ""}, {"height": 32}, {"dtype": torch.bfloat16},
    {"dtype": torch.float16},
)  # fmt: skip
# Every option, and every pipeline with a text of its own and another size.
SERVED = [(name, call) for name in NAMES for call in CALLS if name == "sd" or call in (CALLS[1], CALLS[3])]
OTHERS = [(name, call) for name in NAMES for call in CALLS if (name, call) not in SERVED]


@pytest.mark.parametrize(("name", "call"), [*SERVED, *(pytest.param(*one, marks=pytest.mark.faults) for one in OTHERS)])
def test_what_is_served_passes(name, call):
    check(build(name), **call)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("PNDMScheduler", {}),
        ("DDPMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("KDPM2DiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {"prediction_type": "sample"}),
        ("UniPCMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        ("LCMScheduler", {"clip_sample": False}),
    ],
)
def test_schedulers_that_are_served_pass(kind, config):
    pipe = build("sd")
    given = {**pipe.scheduler.config, **config}
    pipe.scheduler = getattr(diffusers, kind).from_config(given)
    check(pipe)


def test_a_vae_with_mean_and_deviation_of_channels():
    pipe = build("sdxl")
    changed(pipe, "vae", latents_mean=[0.5, -1.0, 0.2, 0.0], latents_std=[2.0, 0.5, 1.0, 3.0])
    _, decoder = check(pipe)
    latents = torch.randn(2, 4, 8, 8)
    mean, deviation = (torch.tensor(pipe.vae.config[f"latents_{key}"]).view(1, 4, 1, 1) for key in ("mean", "std"))
    wanted = pipe.vae.decode(latents * deviation / pipe.vae.config.scaling_factor + mean)[0].clamp(-1.0, 1.0)
    assert torch.allclose(decoder(latents), wanted, atol=1e-5)
    # What the pipelines of Stable Diffusion 1 and 2 make of such settings: nothing.
    for settings in ({"latents_mean": [0.5] * 4, "latents_std": [2.0] * 4}, {"shift_factor": 0.5}):
        check(changed(build("sd"), "vae", **settings))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("size", [8, 9])
def test_a_guidance_scale_that_the_unet_is_told(name, size):
    pipe = build(name)
    pipe.unet = rebuilt(pipe.unet, time_cond_proj_dim=size)
    for guidance in (1.0, 7.5):
        task, _ = check(pipe, guidance=guidance)
        assert task.model.calls_a_sample == 1
    low, high = (text_task(Parts(pipe, PROMPTS, PROMPTS, 16, 16, g))[0] for g in (1.0, 7.5))
    for task in (low, high):
        task.model.table.prepare(torch.tensor([0]))
    x = torch.randn(1, 4, 8, 8)
    answers = [task.model(x, torch.tensor([0.5]), torch.tensor([0])) for task in (low, high)]
    assert not torch.allclose(*answers, atol=1e-3)


def test_unets_of_other_inputs_are_refused():
    pipe = build("sd")
    pipe.unet = rebuilt(pipe.unet, in_channels=9)
    with pytest.raises(
        InputError, match=r"its UNet2DConditionModel takes 9 channels, latents have 4: a model of other"
    ):
        check(pipe)
    pipe.unet = rebuilt(pipe.unet, in_channels=4, out_channels=8)
    with pytest.raises(InputError, match=r"answers with 8 channels, latents have 4"):
        check(pipe)
    pipe.unet = rebuilt(build("sd").unet, num_class_embeds=3)
    with pytest.raises(InputError, match=r"the pipeline's own call fails: ValueError: class_labels should be provided"):
        check(pipe)
    pipe = build("flux")
    pipe.transformer = rebuilt(pipe.transformer, in_channels=32)
    with pytest.raises(InputError, match=r"FluxTransformer2DModel takes 32 channels, latents have 16"):
        check(pipe)


@pytest.mark.parametrize("key", ["clip_sample", "thresholding"])
def test_schedulers_that_cut_off_are_refused(key):
    pipe = build("sdxl")
    pipe.scheduler = diffusers.DDIMScheduler(**{"clip_sample": False, key: True})
    with pytest.raises(InputError, match=rf"scheduler.{key} = true cuts x_0 off"):
        check(pipe)


class Louder(diffusers.DDIMScheduler):
    """A user's own: x_0 is another than that of the answer."""

    def step(self, model_output, timestep, sample, eta=0.0, generator=None, return_dict=True):
        return super().step(1.1 * model_output, timestep, sample, eta=eta, generator=generator)


def keep_the_prompt(pipe):
    """Guidance as some pipelines have it: rescaled to the deviation of the prompted answer."""
    call = type(pipe).__call__
    pipe.__class__ = type(
        "Rescaling", (type(pipe),), {"__call__": lambda self, *a, **k: call(self, *a, guidance_rescale=0.7, **k)}
    )
    pipe.__class__.__name__ = "StableDiffusionPipeline"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda pipe: changed(pipe, "image_processor", do_normalize=False),
            r"vae \(decoded picture\) is off by 1\.\d+",
        ),
        (
            lambda pipe: setattr(pipe, "scheduler", Louder.from_config(pipe.scheduler.config)),
            r"scheduler \(x_0 of a step",
        ),
        (
            lambda pipe: setattr(pipe, "scheduler", diffusers.EDMEulerScheduler()),
            r"scheduler \(noise level\) is off by",
        ),
        (keep_the_prompt, r"unet \(guided answer\) is off by 0\.\d+ \(allowed 0.001\)"),
    ],
)
def test_what_no_code_names_is_found(change, message):
    # Stable Diffusion 1 asks its image processor for pictures in one way alone.
    pipe = build("sdxl" if "vae" in message else "sd")
    change(pipe)
    with pytest.raises(InputError, match=message):
        check(pipe)


def test_a_run_is_refused_before_it_begins(tmp_path, capsys):
    """In one line, with nothing drawn; and what the folder's variants are is an option of the config."""
    config = text_config(tmp_path)
    pipe = build("sd")
    pipe.unet = rebuilt(pipe.unet, in_channels=9)
    shutil.rmtree(tmp_path / "sd")
    pipe.save_pretrained(tmp_path / "sd", variant="fp16")
    config.write_text(config.read_text().replace('folder = "sd"', 'folder = "sd"\nvariant = "fp16"'))
    assert main(["finetune", str(config)]) == 2
    assert "takes 9 channels, latents have 4" in capsys.readouterr().err
    config.write_text(config.read_text().replace('"fp16"', '"bf16"'))
    assert main(["finetune", str(config)]) == 2
    assert "model.variant = 'bf16': " in capsys.readouterr().err
    assert not (tmp_path / "run/evaluation").exists()
