"""A loaded adapter in calls with callbacks, errors, and other LoRAs."""

import diffusers
import numpy as np
import pytest
import torch
from accelerated.calls import off
from pipelines import build

from pgraft_fast import PGraftCallback, accelerate, load_adapter, restore, unload_adapter
from pgraft_fast.errors import InputError

peft = pytest.importorskip("peft")
from accelerated.saved import CLOSE, STEPS, denoiser_of  # noqa: E402


@pytest.fixture
def sd(made):
    yield made("sd")
    unload_adapter(restore(made("sd").pipe))


@pytest.mark.parametrize("fast", [False, True])
def test_the_callers_callback(sd, fast):
    load_adapter(sd.pipe, sd.folder)
    if fast:
        accelerate(sd.pipe)
        sd.draw()
    seen = []

    def callback(pipe, step, timestep, callback_kwargs):
        seen.append((step, sorted(callback_kwargs)))
        return {"latents": callback_kwargs["latents"] * 1.5} if step == STEPS - 1 else callback_kwargs

    more = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"], "output_type": "latent"}
    got = sd.draw(callback_on_step_end=callback, **more)
    want = sd.draw(sd.plain, callback_on_step_end=sd.metadata.callback(), output_type="latent")
    assert np.abs(got.picture - 1.5 * want.picture).max() < 1e-3 * np.abs(want.picture).max()
    assert seen == [(step, ["latents", "prompt_embeds"]) for step in range(STEPS)]
    # A callback of diffusers' own kind names its inputs itself.
    cutoff = diffusers.callbacks.SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    both = sd.draw(callback_on_step_end=cutoff)
    handover = sd.metadata.callback()

    class Both(diffusers.callbacks.SDCFGCutoffCallback):
        def callback_fn(self, pipe, step, timestep, callback_kwargs):
            return super().callback_fn(pipe, step, timestep, handover(pipe, step, timestep, callback_kwargs))

    plain = sd.draw(sd.plain, callback_on_step_end=Both(cutoff_step_ratio=None, cutoff_step_index=0))
    assert off(both, plain) < CLOSE / 10 and off(both, sd.want) > 1e-3
    # A handover that the caller gives is the one that counts.
    later = PGraftCallback(0.0)
    assert off(sd.draw(callback_on_step_end=later), sd.whole) < CLOSE / 10


def actives(pipe):
    layers = [
        layer for layer in denoiser_of(pipe).modules() if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer)
    ]
    return {(tuple(layer.active_adapters), layer.disable_adapters) for layer in layers}


@pytest.mark.parametrize("fast", [False, True])
def test_a_call_that_is_broken_off(sd, fast):
    load_adapter(sd.pipe, sd.folder)
    if fast:
        accelerate(sd.pipe)
        sd.draw()
    layer, made = sd.pipe.unet.conv_in, []

    def failing(x):
        made.append(actives(sd.pipe))
        if len(made) == STEPS:
            raise RuntimeError("the last step fails")
        return type(layer).forward(layer, x)

    layer.forward = failing
    with pytest.raises(RuntimeError, match="the last step"):
        sd.draw()
    del layer.forward
    assert made[0] == actives(sd.pipe) == {(("pgraft",), False)} and made[-1] == {((), False)}
    assert off(sd.draw(), sd.want) < CLOSE / 10

    def stop(pipe, step, timestep, callback_kwargs):
        pipe._interrupt = step == STEPS - 2
        return callback_kwargs

    sd.draw(callback_on_step_end=stop)
    assert actives(sd.pipe) == {(("pgraft",), False)}


@pytest.mark.parametrize("switched_off", [False, True])
def test_another_lora_of_the_user(sd, switched_off):
    """It acts on both sides of the cut, and stays when ours goes; one that was switched off stays off."""
    torch.manual_seed(3)
    style = peft.LoraConfig(target_modules=["to_q", "ff.net.2"], r=2, lora_alpha=8, init_lora_weights=False)
    sd.pipe.unet.add_adapter(style, "style")
    try:
        if switched_off:
            sd.pipe.disable_lora()
        alone, before = sd.draw(), actives(sd.pipe)
        load_adapter(sd.pipe, sd.folder)
        sides = []

        def callback(pipe, step, timestep, callback_kwargs):
            sides.append(actives(pipe))
            return callback_kwargs

        got = sd.draw(callback_on_step_end=callback)
        rest = () if switched_off else ("style",)
        assert sides == [{((*rest, "pgraft"), False)}, {(rest, False)}, {(rest, False)}, {((*rest, "pgraft"), False)}]
        assert (off(got, sd.want) == 0.0) == switched_off
        unload_adapter(sd.pipe)
        assert off(sd.draw(), alone) == 0.0 and before <= actives(sd.pipe)
        assert list(sd.pipe.unet.peft_config) == ["style"]
        with pytest.raises(InputError, match=r"^adapter_name='style' is taken by another adapter of the pipeline"):
            load_adapter(sd.pipe, sd.folder, adapter_name="style")
    finally:
        sd.pipe.unload_lora_weights()


def test_what_the_user_does_to_the_lora_meanwhile(sd):
    load_adapter(sd.pipe, sd.folder)
    sd.pipe.set_adapters("pgraft", 0.0)
    assert off(sd.draw(), sd.base) == 0.0
    sd.pipe.set_adapters("pgraft", 1.0)
    sd.pipe.disable_lora()
    assert off(sd.draw(), sd.base) == 0.0
    sd.pipe.enable_lora()
    assert off(sd.draw(), sd.want) == 0.0
    sd.pipe.unload_lora_weights()
    assert off(sd.draw(), sd.base) == 0.0
    other = load_adapter(build("sd"), sd.folder)
    for _ in range(2):
        other.fuse_lora()
        with pytest.raises(InputError, match=r"^the LoRA 'pgraft' is fused into the weights .*: unfuse_lora first$"):
            sd.draw(other)
        other.unfuse_lora()
        assert off(sd.draw(other), sd.want) < 1e-4
    other.fuse_lora()
    assert off(sd.draw(unload_adapter(other)), sd.base) < 1e-4
