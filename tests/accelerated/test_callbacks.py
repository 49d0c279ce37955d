"""Callbacks, interruption and loops that do more than one call a step, in accelerated pipelines."""

import numpy as np
import pytest
import torch
from accelerated.calls import call, check_same, off, taken_over
from pipelines import build
from repeats import repeats

from pgraft_fast import accelerate, restore

WITH_CALLBACK = ("sd", "sdxl", "sd3", "flux", "sana")


class Watcher:
    """A callback that keeps what it is shown. change: what it gives back as latents; stop_at: where it interrupts."""

    def __init__(self, change=None, stop_at=None):
        self.change, self.stop_at, self.seen = change, stop_at, []

    def __call__(self, pipe, step, timestep, tensors):
        self.seen.append((step, float(timestep), tensors["latents"].clone()))
        if step == self.stop_at:
            pipe._interrupt = True
        return {"latents": self.change(tensors["latents"])} if self.change else tensors


def check_watched(name, **how):
    pipe = build(name)
    plain = Watcher(**how)
    want = call(pipe, name, callback_on_step_end=plain)
    accelerate(pipe)
    # Calls without a callback between those with one.
    for watched in (True, False, True, False):
        if not watched:
            call(pipe, name)
            continue
        watcher = Watcher(**how)
        assert off(call(pipe, name, callback_on_step_end=watcher), want) < 1e-4
        assert [seen[:2] for seen in watcher.seen] == [seen[:2] for seen in plain.seen]
        for (_, _, a), (_, _, b) in zip(watcher.seen, plain.seen, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert taken_over(pipe)
    return plain


@pytest.mark.parametrize("name", WITH_CALLBACK)
def test_a_callback_sees_the_same(name):
    assert len(check_watched(name).seen) == 4


@pytest.mark.parametrize("name", ["sd", "sd3", "sana", *repeats("sdxl", "flux")])
def test_a_callback_may_change_the_latents(name):
    check_watched(name, change=lambda latents: latents * 0.5)


INTERRUPTED = [("sd", 0), ("sdxl", 2), ("sd3", 0), ("flux", 2), ("sana", 0)]


@pytest.mark.parametrize(
    ("name", "stop_at"), [*INTERRUPTED, *repeats(*((name, 2 - stop_at) for name, stop_at in INTERRUPTED))]
)
def test_a_callback_may_interrupt(name, stop_at):
    assert len(check_watched(name, stop_at=stop_at).seen) == stop_at + 1


@pytest.mark.parametrize("stop_at", [0, 2])
def test_interrupted_by_somebody_else(stop_at):
    """Not by a callback: from another thread, or here from inside of the model."""
    pipe = build("sd")
    layer, forward, made = pipe.unet.conv_in, pipe.unet.conv_in.forward, []

    def stopping(x):
        made.append(x)
        if len(made) == stop_at + 1:
            pipe._interrupt = True
        return forward(x)

    layer.forward = stopping
    want = call(pipe, "sd", output_type="latent")
    assert len(made) == stop_at + 1 and pipe.interrupt
    accelerate(pipe)
    for _ in range(3):
        made.clear()
        assert off(call(pipe, "sd", output_type="latent"), want) < 1e-4
        assert len(made) == stop_at + 1 and pipe.interrupt
    del layer.forward
    restore(pipe)
    assert not np.array_equal(call(pipe, "sd", output_type="latent").picture, want.picture)
    assert not pipe.interrupt


@pytest.mark.parametrize("name", ["pixart", "sd", "sdxl"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_old_callback(name):
    pipe = build(name)

    def shown():
        seen = []

        def keep(step, t, x):
            seen.append((step, float(t), x.clone()))

        return call(pipe, name, callback=keep, callback_steps=2), seen

    want, seen = shown()
    accelerate(pipe)
    for _ in range(2):
        call(pipe, name)
        got, also = shown()
        assert off(got, want) < 1e-4
        assert [entry[:2] for entry in also] == [entry[:2] for entry in seen] == [(0, seen[0][1]), (2, seen[1][1])]
        for (_, _, a), (_, _, b) in zip(also, seen, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_skipped_layers_of_sd3():
    skip = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.6}
    pipe = build("sd3")
    plain, skipped = (call(pipe, "sd3", num_inference_steps=6, **more) for more in ({}, skip))
    assert np.abs(plain.picture - skipped.picture).max() > 1e-3
    accelerate(pipe)
    for _ in range(2):
        assert off(call(pipe, "sd3", num_inference_steps=6), plain) < 1e-4
        assert off(call(pipe, "sd3", num_inference_steps=6, **skip), skipped) < 1e-4


TWICE = {"true_cfg_scale": 3.0, "negative_prompt": "blue"}


@pytest.mark.parametrize("order", [({}, TWICE), (TWICE, {})])
def test_two_model_calls_a_step_in_flux(order):
    pipe = build("flux")
    kinds = [*order, {"negative_prompt": "blue"}, {"true_cfg_scale": 3.0}]
    want = [call(pipe, "flux", **more) for more in kinds]
    accelerate(pipe)
    for _ in range(2):
        for more, result in zip(kinds, want, strict=True):
            assert off(call(pipe, "flux", **more), result) < 1e-4


@pytest.mark.parametrize("seed", [0, [0, 1], None])
def test_a_call_that_turns_out_otherwise_starts_again(seed, caplog, monkeypatch):
    """The same arguments, but the loop now calls the model twice: nothing of the first attempt is left over."""
    pipe = build("flux")
    two = {"num_images_per_prompt": 2}
    accelerate(pipe)
    for _ in range(2):
        call(pipe, "flux", seed, **two)
    assert taken_over(pipe)
    model = type(pipe.transformer)
    context = model.cache_context

    class Doubled:
        """Asks the model for one more output, as a loop with two calls a step does."""

        def __init__(self, model, name):
            self.model, self.inner = model, context(model, name)

        def __enter__(self):
            self.inner.__enter__()
            extra = torch.zeros(2, 16, 16)
            words = {"encoder_hidden_states": torch.zeros(2, 64, 16), "pooled_projections": torch.zeros(2, 16)}
            ids = {"txt_ids": torch.zeros(64, 3), "img_ids": torch.zeros(16, 3)}
            self.model(
                hidden_states=extra, timestep=torch.ones(2), guidance=torch.ones(2), joint_attention_kwargs={},
                **words, **ids, return_dict=False,
            )  # fmt: skip

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

    def doubled(self, name):
        return Doubled(self, name)

    with caplog.at_level("INFO", logger="pgraft_fast"), monkeypatch.context() as patched:
        patched.setattr(model, "cache_context", doubled)
        got = [call(pipe, "flux", seed, **two) for _ in range(2)]
    assert sum("starts again" in record.message for record in caplog.records) == 1
    restore(pipe)
    for result in got:
        assert off(result, call(pipe, "flux", seed, **two)) < 1e-4


@pytest.mark.parametrize("name", ["sd", "ddim"])
def test_hooks_of_the_model_are_called_once_a_step(name):
    pipe = build(name)
    called = []
    handle = pipe.unet.register_forward_hook(lambda module, inputs, out: called.append(1))
    check_same(pipe, name, taken=False)
    assert len(called) == 4 * 3
    handle.remove()
    check_same(pipe, name)
    assert len(called) == 4 * 3


def test_a_hook_that_changes_the_output():
    pipe = build("sd")
    accelerate(pipe)
    for _ in range(2):
        before = call(pipe, "sd")
    handle = pipe.unet.register_forward_hook(lambda module, inputs, out: (out[0] * 0.9,))
    got = [call(pipe, "sd") for _ in range(2)]
    restore(pipe)
    for result in got:
        assert off(result, call(pipe, "sd")) < 1e-4
    assert np.abs(got[0].picture - before.picture).max() > 1e-3
    handle.remove()
