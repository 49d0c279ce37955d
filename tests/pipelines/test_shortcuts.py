"""What a pipeline answers sooner, accelerated or driven, is what diffusers answers."""

import copy
import gc
import weakref

import pytest
import torch
from accelerated.calls import call, off
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from pipelines import build
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from pgraft_fast import accelerate
from pgraft_fast.pipelines.loop import Loop
from pgraft_fast.pipelines.shortcuts import ExecutionDevice, maybe_convert_prompt, shortcuts


@pytest.fixture
def device_queries(monkeypatch):
    """How often diffusers was asked for the device."""
    queries, own = [], DiffusionPipeline._execution_device

    def counted(pipe):
        queries.append(1)
        return own.fget(pipe)

    monkeypatch.setattr(DiffusionPipeline, "_execution_device", property(counted))
    return queries


def test_the_device_is_asked_for_once(device_queries):
    pipe = accelerate(build("sd"))
    for _ in range(3):
        call(pipe, "sd")
    assert len(device_queries) == 1


def test_a_driven_loop_asks_no_more(device_queries):
    """The loop of every prompt is a call of the pipeline."""
    pipe = build("sd")
    for prompt in ("a", "b", "c"):
        loop = Loop(pipe, {"prompt": prompt, "num_inference_steps": 3, "output_type": "np"})
        loop.output(loop.start, loop.levels[1][0])
        assert loop.finish(loop.start).images.shape[0] == 1
    assert len(device_queries) == 1


def test_a_new_component_and_moved_weights(device_queries):
    pipe, device = build("sd"), ExecutionDevice()
    assert device.of(pipe) == torch.device("cpu")
    pipe.unet = copy.deepcopy(pipe.unet)
    assert device.of(pipe) == torch.device("cpu") and len(device_queries) == 2
    for part in (pipe.text_encoder, pipe.vae, pipe.unet):
        part.to("meta")
    assert [device.of(pipe) for _ in range(2)] == [torch.device("meta")] * 2
    pipe.vae = None
    assert device.of(pipe) == torch.device("meta")


def test_a_dropped_component_is_not_held():
    pipe = build("sd")
    shortcuts(pipe)
    dropped = weakref.ref(pipe.text_encoder)
    pipe.text_encoder = None
    gc.collect()
    assert dropped() is None
    assert shortcuts(pipe)["_execution_device"] == torch.device("cpu")


def test_where_something_could_be_offloaded_the_pipeline_is_asked(device_queries, monkeypatch):
    pipe, device = build("sd"), ExecutionDevice()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert [device.of(pipe) for _ in range(3)] == [None] * 3
    assert "_execution_device" not in shortcuts(pipe)


def test_what_a_user_replaced_is_asked():
    class Mine(StableDiffusionPipeline):
        @property
        def _execution_device(self):
            return torch.device("cpu")

        def maybe_convert_prompt(self, prompt, tokenizer):
            return prompt

    pipe = build("sd")
    assert set(shortcuts(pipe)) == {"_execution_device", "maybe_convert_prompt"}
    pipe.maybe_convert_prompt = lambda prompt, tokenizer: prompt
    assert set(shortcuts(pipe)) == {"_execution_device"}
    mine = Mine(**build("sd").components, requires_safety_checker=False)
    assert shortcuts(mine) == {}


@pytest.mark.parametrize("prompt", ["a <cat> and <cat>", ["a <cat>", "a dog"], "a <hat>"])
@pytest.mark.parametrize("tokens", [["<hat>"], ["<cat>", "<cat>_1", "<cat>_2", "<hat>"]])
def test_prompts_with_textual_inversions(prompt, tokens):
    pipe = build("sd")
    pipe.tokenizer.add_tokens(tokens)
    want = pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
    assert maybe_convert_prompt(pipe, prompt, pipe.tokenizer) == want
    several = "<cat>_2" in tokens and any("<cat>" in text for text in ([prompt] if isinstance(prompt, str) else prompt))
    assert (want != prompt) == several


def test_a_hook_sees_every_model_call():
    """Also one of all modules, which the loop outside of the pipeline must not pass by."""
    pipe = accelerate(build("ddim"))
    call(pipe, "ddim")
    seen = []
    handle = register_module_forward_hook(lambda module, args, out: seen.append(1) if module is pipe.unet else None)
    try:
        call(pipe, "ddim")
    finally:
        handle.remove()
    # Of the pipeline's own calls, in whose place the loop makes them, it sees none.
    assert len(seen) == 4


def test_the_call_of_a_class_of_its_own():
    """A denoiser that does something in `__call__` itself."""
    pipe = build("ddim")
    want = call(pipe, "ddim")
    calls = []

    class Loud(type(pipe.unet)):
        def __call__(self, *args, **kwargs):
            calls.append(1)
            return nn.Module.__call__(self, *args, **kwargs)

    pipe.unet.__class__ = Loud
    accelerate(pipe)
    for _ in range(2):
        calls.clear()
        assert off(call(pipe, "ddim"), want) < 1e-4
        assert len(calls) >= 4
