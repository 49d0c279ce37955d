"""Keys of graphs tell apart what is switched on in a denoiser."""

import pytest
import torch
from pipelines import build

from pgraft_fast.pipelines.switches import switches_of
from pgraft_fast.sampling.graphs import weights_key

peft = pytest.importorskip("peft")


def key(unet):
    return weights_key(unet, switches_of)


def with_lora(names=("one",)):
    unet = build("sd").unet
    for name in names:
        config = peft.LoraConfig(target_modules=["to_q", "to_v"], r=4, init_lora_weights=False)
        unet.add_adapter(config, adapter_name=name)
    unet.set_adapter(names[0])
    return unet


def test_adapters_on_and_off():
    unet = with_lora()
    before = key(unet)
    assert before != key(build("sd").unet)
    unet.disable_adapters()
    off = key(unet)
    assert off != before
    unet.enable_adapters()
    assert key(unet) == before
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "lora" in name:
                weight.zero_()
    assert key(unet) == before


def test_adapters_chosen_and_weighed():
    unet = with_lora(("one", "two"))
    seen = [key(unet)]
    for change in (
        lambda: unet.set_adapter("two"),
        lambda: unet.set_adapters(["one", "two"], [1.0, 1.0]),
        lambda: unet.set_adapters(["one", "two"], [0.5, 1.0]),
        lambda: unet.set_adapters(["one", "two"], [0.5, 0.7]),
        lambda: unet.fuse_lora(adapter_names=["one"]),
        lambda: unet.delete_adapters("two"),
    ):
        change()
        seen.append(key(unet))
    assert len(set(seen)) == len(seen)


def test_what_diffusers_switches_in_a_model():
    unet = build("sd").unet
    seen = [key(unet)]
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    seen.append(key(unet))
    unet.enable_freeu(0.9, 0.2, 1.2, 1.5)
    seen.append(key(unet))
    assert len(set(seen)) == 3
    unet.disable_freeu()
    unet.set_attention_slice(1)
    assert key(unet) not in seen
