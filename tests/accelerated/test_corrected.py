"""CorrectedPipeline: the same pictures as `latents=corrector(noise)`, in every pipeline with a flow's scheduler."""

import pytest
import torch
from pipelines import build, call_arguments

import pgraft_fast as pf
from pgraft_fast.errors import InputError
from pgraft_fast.inverse_noise import FitSettings

SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def corrector():
    """Trained for a moment, so that it is no identity."""
    noise = 1.3 * torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0)) + 0.2
    return pf.NoiseCorrector.fit(
        noise, steps=3, base_steps=4, network={"kind": "perceptron", "width": 16, "depth": 1},
        settings=FitSettings(steps=60, batch_size=32, learning_rate=1e-2),
    )  # fmt: skip


def draw(pipe, name, **more):
    arguments = {
        **call_arguments(name), "num_inference_steps": 4, "generator": torch.Generator().manual_seed(5)
    } | more  # fmt: skip
    return torch.from_numpy(pipe(**arguments).images)


def packed(x):
    """As Flux takes latents."""
    return type(build("flux"))._pack_latents(x, *x.shape)


@pytest.mark.parametrize("name", ["sd3", "flux"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_picture_is_that_of_corrected_latents(name, count, corrector):
    pipe = build(name)
    plain = draw(pipe, name, num_images_per_prompt=count)
    better = draw(pf.CorrectedPipeline(pipe, corrector), name, num_images_per_prompt=count)
    noise = corrector(torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5)))
    latents = packed(noise) if name == "flux" else noise
    assert torch.equal(better, draw(pipe, name, num_images_per_prompt=count, latents=latents))
    assert not torch.equal(better, plain)
    # The pipeline itself is as before.
    assert torch.equal(draw(pipe, name, num_images_per_prompt=count), plain)


def test_given_latents_are_taken_as_they_are(corrector):
    pipe, noise = build("sd3"), torch.randn(1, *SHAPE)
    better = pf.CorrectedPipeline(pipe, corrector)
    for steps in (4, 6):
        wanted = draw(pipe, "sd3", latents=noise, num_inference_steps=steps)
        assert torch.equal(draw(better, "sd3", latents=noise, num_inference_steps=steps), wanted)


def test_an_accelerated_pipeline_draws_the_same(corrector):
    pipe = build("sd3")
    wanted = draw(pf.CorrectedPipeline(pipe, corrector), "sd3")
    pf.accelerate(pipe)
    actual = draw(pf.CorrectedPipeline(pipe, corrector), "sd3")
    assert torch.allclose(actual, wanted, atol=2e-3)


def test_all_else_is_the_pipelines(corrector):
    pipe = build("sd3")
    better = pf.CorrectedPipeline(pipe, corrector)
    assert better.transformer is pipe.transformer and better.encode_prompt == pipe.encode_prompt
    with pytest.raises(AttributeError, match="nothing"):
        better.nothing  # noqa: B018


def test_what_does_not_fit_is_refused_and_undone(corrector):
    pipe = build("sd3")
    better = pf.CorrectedPipeline(pipe, corrector)
    with pytest.raises(InputError, match=r"made for 4 steps of the base, this call has 5: pass num_inference_steps=4"):
        draw(better, "sd3", num_inference_steps=5)
    with pytest.raises(InputError, match=r"drew noise of shape \(4, 4, 4\), the corrector is for \(4, 8, 8\)"):
        draw(better, "sd3", height=8, width=8)
    assert "prepare_latents" not in vars(pipe) and "set_timesteps" not in vars(pipe.scheduler)
    with pytest.raises(InputError, match="needs a flow-matching scheduler, got DDIMScheduler"):
        pf.CorrectedPipeline(build("sd"), corrector)
    with pytest.raises(InputError, match="needs a pipeline that prepares latents, got int"):
        pf.CorrectedPipeline(3, corrector)
    from diffusers import StableDiffusion3Img2ImgPipeline

    with pytest.raises(InputError, match="starts from a picture, not from noise"):
        pf.CorrectedPipeline(StableDiffusion3Img2ImgPipeline(**pipe.components), corrector)
