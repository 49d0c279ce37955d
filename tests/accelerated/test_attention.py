"""The attention backend of an accelerated pipeline, and the one that was there before."""

import importlib.util

import diffusers
import numpy as np
import pytest
import torch
from accelerated.calls import call, off
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from pipelines import NAMES, build

from pgraft_fast import accelerate, restore
from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.accelerated.attention import Attention

without_xformers = pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is there")


def denoiser_of(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def processors(pipe):
    return [module.processor for module in denoiser_of(pipe).modules() if hasattr(module, "set_processor")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["sdpa", "auto"])
def test_torch_attention(name, kind):
    pipe = build(name)
    want, before = call(pipe, name), processors(pipe)
    assert before
    default = _AttentionBackendRegistry.get_active_backend()
    accelerate(pipe, attention=kind)
    for _ in range(2):
        assert off(call(pipe, name), want) < 1e-4
    # Sana's linear attention and SD3's joint one are no softmax attention of a single sequence.
    assert [type(processor) for processor in processors(pipe)] == [type(processor) for processor in before]
    restore(pipe)
    assert all(a is b for a, b in zip(processors(pipe), before, strict=True))
    assert _AttentionBackendRegistry.get_active_backend() == default


@pytest.fixture
def default_backend():
    """diffusers makes the last backend that was set that of every model without one."""
    yield _AttentionBackendRegistry.get_active_backend
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def test_a_backend_set_before(default_backend):
    pipe, other = build("flux"), build("flux")
    pipe.transformer.set_attention_backend("_native_math")
    before = default_backend()
    accelerate(pipe, attention="sdpa")
    assert {processor._attention_backend for processor in processors(pipe)} == {AttentionBackendName.NATIVE}
    assert {processor._attention_backend for processor in processors(other)} == {None}
    assert default_backend() == before
    restore(pipe)
    assert {processor._attention_backend for processor in processors(pipe)} == {AttentionBackendName._NATIVE_MATH}


def test_processors_set_before():
    pipe = build("sd")
    pipe.unet.set_attn_processor(AttnProcessor())
    before = processors(pipe)
    accelerate(pipe, attention="sdpa")
    call(pipe, "sd")
    # Set after accelerate, by the user: restore puts back what accelerate found.
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    restore(pipe)
    assert all(a is b for a, b in zip(processors(pipe), before, strict=True))


@without_xformers
def test_xformers_is_missing():
    pipe = build("sd")
    with pytest.raises(InputError, match=r"^attention='xformers' needs xformers: pip install "):
        accelerate(pipe, attention="xformers")
    assert type(pipe.scheduler) is diffusers.DDIMScheduler


def test_layers_that_xformers_does_not_know():
    attention = Attention(build("sana").transformer, "keep")
    with pytest.raises(InputError, match="SanaLinearAttnProcessor2_0"):
        attention.use("xformers")
    with pytest.raises(InputError, match="no attention layers"):
        Attention(torch.nn.Linear(1, 1), "keep").use("xformers")


@without_xformers
@pytest.mark.parametrize("name", ["sd", "sdxl", "ddim"])
def test_a_trial_leaves_the_call_as_it_is(name, tmp_path, monkeypatch, caplog):
    """The trial runs short calls with the same arguments; xformers cannot run here and is left out of it."""
    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path))
    pipe = build(name)
    seen = []
    more = {} if name == "ddim" else {"callback_on_step_end": lambda pipe, i, t, tensors: seen.append(i) or tensors}
    want, before, plain = call(pipe, name, **more), processors(pipe), list(seen)
    accelerate(pipe, attention="auto")
    pipe._pgraft_fast.attention.open = True
    seen.clear()
    with caplog.at_level("INFO", logger="pgraft_fast"):
        assert off(call(pipe, name, **more), want) < 1e-4
    assert "xformers is left out" in caplog.text and "sdpa is taken" in caplog.text and seen == plain
    assert all(a is b for a, b in zip(processors(pipe), before, strict=True))
    assert (tmp_path / "choices.json").exists()


@without_xformers
def test_a_trial_with_arguments_by_position(tmp_path, monkeypatch):
    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path))
    pipe = build("ddim")

    def drawn():
        return pipe(2, [torch.Generator().manual_seed(i) for i in range(2)], 0.5, 4, None, "np").images

    want = drawn()
    accelerate(pipe, attention="auto")
    pipe._pgraft_fast.attention.open = True
    for _ in range(2):
        assert np.abs(drawn() - want).max() < 1e-4
