"""Saved adapters: the same pictures from them in plain diffusers, in pgraft_fast and accelerated."""

import math
import sys
import warnings

import diffusers
import numpy as np
import pytest
import torch
from accelerated.calls import call, off, taken_over
from pipelines import build

from pgraft_fast import accelerate, load_adapter, restore, unload_adapter
from pgraft_fast.errors import CheckpointError, InputError
from pgraft_fast.pipelines.adapters.loading import read_adapter, save_adapter

peft = pytest.importorskip("peft")
from accelerated.saved import CLOSE, NAMES, add_lora, metadata_of, state_of  # noqa: E402


@pytest.fixture
def sd(made):
    yield made("sd")
    unload_adapter(restore(made("sd").pipe))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_pictures_everywhere(name, made):
    saved = made(name)
    pipe, before = saved.pipe, state_of(saved.pipe)
    assert off(saved.want, saved.base) > 1e-2 and off(saved.want, saved.whole) > 1e-3
    assert off(saved.draw(saved.tuned, callback_on_step_end=saved.metadata.callback()), saved.want) < 1e-6
    random = torch.get_rng_state()
    assert load_adapter(pipe, saved.folder) is pipe
    assert torch.equal(torch.get_rng_state(), random)
    for _ in range(2):
        assert off(saved.draw(), saved.want) == 0.0
    accelerate(pipe)
    for _ in range(2):
        assert off(saved.draw(), saved.want) < CLOSE / 10
        assert taken_over(pipe)
    restore(pipe)
    assert off(saved.draw(), saved.want) == 0.0
    assert unload_adapter(pipe) is pipe and state_of(pipe) == before
    assert off(saved.draw(), saved.base) == 0.0
    accelerate(pipe)
    plain = saved.draw()
    load_adapter(pipe, saved.folder)
    for _ in range(2):
        assert off(saved.draw(), saved.want) < CLOSE / 10
    unload_adapter(pipe)
    assert off(saved.draw(), plain) < CLOSE / 10
    restore(pipe)
    assert state_of(pipe) == before and off(saved.draw(), saved.base) == 0.0


@torch.no_grad()
def test_against_a_loop_by_hand(sd):
    """Euler, another scheduler than the one of the training, and another number of steps."""
    scheduler = diffusers.EulerDiscreteScheduler.from_config(sd.pipe.scheduler.config)
    words = torch.cat(sd.pipe.encode_prompt("a red cube", "cpu", 1, True)[::-1])
    scheduler.set_timesteps(7)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    sides = []
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        left_to_base = -2.0 * math.log(sigma) >= sd.metadata.cut_logsnr
        sides.append(left_to_base)
        unet = sd.pipe.unet if left_to_base else sd.tuned.unet
        null, out = unet(scheduler.scale_model_input(torch.cat([x, x]), t), t, words).sample.chunk(2)
        x = scheduler.step(null + 7.5 * (out - null), t, x).prev_sample
    assert sides == [False] * 4 + [True] * 3
    own, sd.pipe.scheduler = sd.pipe.scheduler, diffusers.EulerDiscreteScheduler.from_config(scheduler.config)
    try:
        load_adapter(sd.pipe, sd.folder)
        for fast in (False, True):
            if fast:
                accelerate(sd.pipe)
            got = call(sd.pipe, "sd", num_inference_steps=7, output_type="latent").picture
            assert np.abs(got - x.numpy()).max() < 1e-3 * max(1.0, float(x.abs().max()))
    finally:
        restore(sd.pipe).scheduler = own


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_weight(name, made):
    saved = made(name)
    load_adapter(saved.pipe, saved.folder, weight=0.0)
    assert off(saved.draw(), saved.base) == 0.0
    accelerate(saved.pipe)
    assert off(saved.draw(), saved.base) < CLOSE / 10
    restore(saved.pipe)
    load_adapter(saved.pipe, saved.folder, weight=0.5)
    half = saved.draw()
    assert off(half, saved.base) > 1e-3 and off(half, saved.want) > 1e-3
    unload_adapter(saved.pipe)
    saved.plain.set_adapters(saved.plain.get_active_adapters(), 0.0)
    assert off(saved.draw(saved.plain, callback_on_step_end=saved.metadata.callback()), saved.base) == 0.0
    saved.plain.set_adapters(saved.plain.get_active_adapters(), 0.5)
    assert off(saved.draw(saved.plain, callback_on_step_end=saved.metadata.callback()), half) == 0.0
    saved.plain.set_adapters(saved.plain.get_active_adapters(), 1.0)


def test_without_a_cut_it_acts_to_the_end(sd):
    assert read_adapter(sd.graft)[1].cut_logsnr is None and read_adapter(sd.graft)[1].callback() is None
    load_adapter(sd.pipe, sd.graft)
    assert off(sd.draw(), sd.whole) < 1e-6
    accelerate(sd.pipe)
    for _ in range(2):
        assert off(sd.draw(), sd.whole) < CLOSE / 10


@pytest.mark.parametrize("first", ["load", "accelerate"])
def test_undone_in_any_order(sd, first):
    before = state_of(sd.pipe)
    for step in ("load", "accelerate") if first == "load" else ("accelerate", "load"):
        load_adapter(sd.pipe, sd.folder) if step == "load" else accelerate(sd.pipe)
    assert off(sd.draw(), sd.want) < CLOSE / 10
    unload_adapter(sd.pipe)
    for _ in range(2):
        assert off(sd.draw(), sd.base) < CLOSE / 10
        assert taken_over(sd.pipe)
    # On top of what is left there.
    load_adapter(sd.pipe, sd.folder)
    assert off(sd.draw(), sd.want) < CLOSE / 10
    restore(sd.pipe)
    assert off(sd.draw(), sd.want) == 0.0
    unload_adapter(sd.pipe)
    assert state_of(sd.pipe) == before and unload_adapter(sd.pipe) is sd.pipe
    assert off(sd.draw(), sd.base) == 0.0


def test_a_second_one_replaces_the_first(sd, tmp_path):
    other = build("sd")
    add_lora(other, seed=2)
    save_adapter(tmp_path, other.unet, metadata_of(other, cut=0.0))
    load_adapter(sd.pipe, sd.folder)
    load_adapter(sd.pipe, tmp_path)
    assert off(sd.draw(), sd.draw(other)) < 1e-6 and list(sd.pipe.unet.peft_config) == ["pgraft"]
    with pytest.raises(CheckpointError):
        load_adapter(sd.pipe, tmp_path / "none")
    assert off(sd.draw(), sd.draw(other)) < 1e-6
    load_adapter(sd.pipe, sd.folder)
    assert off(sd.draw(), sd.want) == 0.0


def test_a_base_with_other_weights(sd):
    other = build("sd", seed=1)
    with pytest.warns(
        UserWarning, match=r"tuned from another UNet2DConditionModel .*base_fingerprint differs"
    ) as caught:
        load_adapter(other, sd.folder)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(sd.pipe, sd.folder)


def test_pipelines_that_it_is_not_for(sd, made, monkeypatch):
    before = state_of(sd.pipe)
    for path, line in (
        (
            made("sd3").folder,
            "the adapter is for SD3Transformer2DModel, StableDiffusionPipeline has UNet2DConditionModel",
        ),
        (made("sdxl").folder, r".*tuned does not fit: \S+ of UNet2DConditionModel has the shape .* for another"),
        (made("sdxl").kohya, r".*kohya.safetensors does not fit: \S+ of UNet2DConditionModel has .* for another"),
    ):
        with pytest.raises(InputError, match=f"^{line}$"):
            load_adapter(sd.pipe, path)
    with monkeypatch.context() as without, pytest.raises(InputError, match=r"^load_adapter needs peft: pip install"):
        without.setitem(sys.modules, "peft", None)
        load_adapter(sd.pipe, sd.folder)
    with pytest.raises(InputError, match=r"^weight=nan: a LoRA's weight is a finite number$"):
        load_adapter(sd.pipe, sd.folder, weight=math.nan)
    assert state_of(sd.pipe) == before
    for target, line in (
        (build("ddpm"), "the adapter is for UNet2DConditionModel, DDPMPipeline has UNet2DModel"),
        (3, "int has no denoiser of diffusers that takes a LoRA"),
    ):
        with pytest.raises(InputError, match=f"^{line}$"):
            load_adapter(target, sd.folder)
    wider = diffusers.UNet2DConditionModel.from_config({**sd.pipe.unet.config, "cross_attention_dim": 24})
    parts = {**sd.pipe.components, "unet": wider}
    with pytest.raises(
        InputError, match=r"attn2.to_k of UNet2DConditionModel has the shape \(\d+, 24\), the adapter is for another$"
    ):
        load_adapter(diffusers.StableDiffusionPipeline(**parts), sd.folder)
