"""An accelerated pipeline gives what the pipeline gave, whatever the arguments of its call."""

import numpy as np
import pytest
import torch
from accelerated.calls import cached, call, check_same, off, taken_over
from pipelines import NAMES, build
from repeats import repeats

from pgraft_fast import accelerate, restore

TEXT = ("sd", "sdxl", "sd3", "flux", "pixart", "sana")
LATENT = (1, 4, 8, 8)
SIGMAS = [1.0, 0.7, 0.4, 0.1]


def scale_of(name):
    return "true_cfg_scale" if name == "flux" else "guidance_scale"


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *((name, 2) for name in NAMES), ("ddpm", 7), ("sd3", 7), ("pixart", 7),
        *repeats(("ddim", 7), ("sd", 7), ("sdxl", 7), ("flux", 7), ("sana", 7)),
    ],
)  # fmt: skip
def test_numbers_of_steps(name, steps):
    check_same(cached(name), name, num_inference_steps=steps)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pixart"])
def test_one_step_is_the_pipelines_own(name):
    check_same(cached(name), name, num_inference_steps=1, taken=False)


@pytest.mark.parametrize("name", NAMES)
def test_calls_of_many_kinds_in_a_row(name):
    pipe = cached(name)
    calls = [{"num_inference_steps": steps, "seed": seed} for steps, seed in ((3, 0), (1, [1]), (2, None), (2, 0))]
    if name in ("ddpm", "ddim"):
        calls += [{"batch_size": 2}, {"batch_size": 2, "seed": [0, 1]}, {"batch_size": 3}, {}]
    else:
        many = {"prompt": ["a dog", "two cats"], "num_images_per_prompt": 2}
        calls += [{"num_images_per_prompt": 2}, many, {}, many, {scale_of(name): 1.0}, {"prompt": "a sea"}, {}]
    if name == "pixart":
        # Its only scheduler here has no other result of a single step; diffusers fails.
        calls = [arguments for arguments in calls if arguments.get("num_inference_steps") != 1]
    want = [call(pipe, name, **arguments) for arguments in calls]
    accelerate(pipe)
    for arguments, result in zip(calls, want, strict=True):
        assert off(call(pipe, name, **arguments), result) < 1e-4, arguments
    restore(pipe)


@pytest.mark.parametrize(
    ("name", "guidance"),
    [
        *((name, 7.5) for name in TEXT), ("sd", 1.0), ("sd3", 1.0),
        *repeats(("sdxl", 1.0), ("flux", 1.0), ("pixart", 1.0), ("sana", 1.0)),
    ],
)  # fmt: skip
def test_guidance(name, guidance):
    check_same(cached(name), name, guidance_scale=guidance, negative_prompt="blurry")


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_rescaled_guidance(name):
    pipe = cached(name)
    pictures = [check_same(pipe, name, guidance_scale=7.5, guidance_rescale=share) for share in (0.0, 0.7)]
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-3
    check_same(pipe, name, guidance_scale=1.0, guidance_rescale=0.7)


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        *((name, [3, 4]) for name in NAMES), ("sd", 3), ("sd", None), ("ddpm", 3), ("ddpm", None),
        *repeats(*((name, seed) for name in NAMES if name not in ("sd", "ddpm") for seed in (3, None))),
    ],
)  # fmt: skip
def test_generators(name, seed):
    two = {"batch_size": 2} if name in ("ddpm", "ddim") else {"num_images_per_prompt": 2}
    check_same(cached(name), name, seed, num_inference_steps=2, **two)


@pytest.mark.parametrize("name", ["sd", "flux", "sana", *repeats("sdxl", "sd3", "pixart")])
def test_several_prompts(name):
    texts = {"prompt": ["a dog", "two cats"], "negative_prompt": ["grey", "red"], "num_images_per_prompt": 2}
    pictures = check_same(cached(name), name, [0, 1, 2, 3], **texts)
    assert len(pictures) == 4


@pytest.mark.parametrize("name", TEXT)
def test_given_latents(name):
    pipe = cached(name)
    latents = torch.randn(LATENT, generator=torch.Generator().manual_seed(9))
    if name == "flux":
        latents = pipe._pack_latents(latents, *LATENT)
    kept = latents.clone()
    check_same(pipe, name, latents=latents)
    assert torch.equal(latents, kept)


@pytest.mark.parametrize("name", ["ddpm", "sd", "flux", *repeats("ddim", "sdxl", "sd3", "pixart", "sana")])
def test_outputs(name):
    kinds = [("np", False), ("pt", True), ("pil", False)]
    kinds += [] if name in ("ddpm", "ddim") else [("latent", True)]
    for kind, as_dict in kinds:
        # One 8-bit level where the pictures are rounded.
        limit = 1.01 / 255 if kind == "pil" else 1e-4
        check_same(cached(name), name, limit=limit, output_type=kind, return_dict=as_dict, num_inference_steps=3)


@pytest.mark.parametrize("name", ["ddim", "sd"])
@pytest.mark.parametrize(("eta", "seed"), [(0.5, 3), (1.0, [3]), (1.0, None)])
def test_eta(name, eta, seed):
    check_same(cached(name), name, seed, eta=eta)


def test_clipped_model_output():
    check_same(cached("ddim"), "ddim", use_clipped_model_output=True, eta=0.3)


@pytest.mark.parametrize(("name", "schedule"), [
    ("sdxl", {"timesteps": [900, 600, 400, 20]}),
    ("sdxl", {"sigmas": [14.0, 5.0, 1.0, 0.1]}),
    ("sd3", {"sigmas": SIGMAS}),
    ("flux", {"sigmas": SIGMAS}),
    ("pixart", {"timesteps": [900, 600, 400, 20]}),
])  # fmt: skip
def test_given_schedules(name, schedule):
    check_same(cached(name), name, **schedule)


@pytest.mark.parametrize("end", [0.3, 0.8])
def test_a_loop_that_ends_early(end):
    check_same(cached("sdxl"), "sdxl", num_inference_steps=9, denoising_end=end, output_type="latent")


def test_embedded_guidance_is_optional_in_flux():
    check_same(build("flux", guidance_embeds=False), "flux", num_inference_steps=4)


def test_arguments_by_position():
    pipe = cached("sd")

    def positional():
        return pipe("a red cube", None, None, 4, None, None, 5.0, output_type="np", generator=seeded()).images

    def seeded():
        return torch.Generator().manual_seed(0)

    want = positional()
    accelerate(pipe)
    for _ in range(2):
        assert np.abs(positional() - want).max() < 1e-4
    assert taken_over(pipe)
    restore(pipe)


def test_an_unknown_argument():
    pipe = accelerate(build("sd3"))
    with pytest.raises(TypeError, match="colour"):
        pipe("a red cube", colour="red")


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name):
    """As near to diffusers as half its precision allows: the two round differently, step by step."""
    pipe = build(name).to(torch.bfloat16)
    exact = call(cached(name), name, output_type="pt").picture
    want = call(pipe, name, output_type="pt").picture
    accelerate(pipe)
    got = [call(pipe, name, output_type="pt").picture for _ in range(2)]
    assert taken_over(pipe)
    own = np.sqrt(np.mean((want - exact) ** 2))
    for picture in got:
        assert np.sqrt(np.mean((picture - exact) ** 2)) < 1.5 * own + 2e-3
        assert np.sqrt(np.mean((picture - want) ** 2)) < 1.5 * own + 2e-3
    restore(pipe)
    assert np.array_equal(call(pipe, name, output_type="pt").picture, want)
