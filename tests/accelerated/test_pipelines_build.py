"""The tests' tiny pipelines take the options of real ones, and their pictures depend on seed, prompt and guidance."""

import numpy as np
import pytest
import torch
from pipelines import NAMES, build, call_arguments

TEXT = tuple(name for name in NAMES if "prompt" in call_arguments(name))


def draw(pipe, name, seed=0, steps=3, **more):
    generator = torch.Generator().manual_seed(seed)
    return pipe(**call_arguments(name) | {"generator": generator, "num_inference_steps": steps} | more).images


@pytest.mark.parametrize("name", NAMES)
def test_seeds(name):
    pipe = build(name)
    pictures = draw(pipe, name)
    assert np.array_equal(draw(build(name), name), pictures)
    assert abs(draw(pipe, name, seed=1) - pictures).max() > 0.1
    assert abs(draw(build(name, seed=1), name) - pictures).max() > 0.1
    assert draw(pipe, name, steps=5).std() > 0.02
    assert ((pictures > 0) & (pictures < 1)).mean() > 0.5


@pytest.mark.parametrize("name", TEXT)
def test_options(name):
    pipe = build(name)
    pictures = draw(pipe, name)
    assert abs(draw(pipe, name, prompt="an old dog") - pictures).max() > 0.05
    scale = "true_cfg_scale" if name == "flux" else "guidance_scale"
    guided = {"negative_prompt": "blue", scale: 3.0}
    assert abs(draw(pipe, name, **guided) - draw(pipe, name, **guided | {scale: 1.0})).max() > 0.02

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    if name == "flux":
        noise = pipe._pack_latents(noise, 1, 4, 8, 8)
    latents = draw(pipe, name, output_type="latent")
    assert latents.shape == noise.shape and latents.dtype == torch.float32
    assert torch.equal(draw(pipe, name, latents=noise, output_type="latent"), latents)
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    four = {"prompt": ["a red cube", "an old dog"], "num_images_per_prompt": 2, "generator": generators}
    assert np.allclose(draw(pipe, name, **four)[0], pictures[0], atol=1e-4)


def test_bench():
    assert 0.7e6 < sum(parameter.numel() for parameter in build("sd", size="bench").unet.parameters()) < 0.9e6
