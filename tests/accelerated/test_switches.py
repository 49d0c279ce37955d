"""Keys of graphs tell apart what is switched on in a denoiser."""

from types import SimpleNamespace

import accelerate as offloading
import every_pipeline
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from pipelines import build
from torch._subclasses.fake_tensor import FakeTensorMode

from pgraft_fast.pipelines.accelerated.runner import Runner
from pgraft_fast.pipelines.calls import Calls, seeds_of
from pgraft_fast.pipelines.switches import runs_hooks, switches_of
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


def mode_on_cuda(net):
    """Of a network whose graphs are asked for."""
    with FakeTensorMode():
        x = torch.empty(1, device="cuda")
    return Runner("step_graph")._mode(SimpleNamespace(nets={"transformer": net}), x, 0, 1)


@pytest.mark.parametrize("name", ["flux", "flux2", "wan", "ltx", "qwen_image", "cogvideox", "animatediff", "sd3"])
def test_no_hooks_run_in_a_network_that_was_called_by_its_pipeline(name):
    pipe = every_pipeline.build(name)
    net = getattr(pipe, "unet", None) or pipe.transformer
    calls = Calls(pipe, every_pipeline.prompts_of(name), every_pipeline.call_of(name))
    pipe(**calls.of(0, 1, seeds_of(0, (1,)), 2))
    assert not runs_hooks(net) and mode_on_cuda(net) == "step_graph"


@pytest.mark.parametrize(
    "hook",
    [
        lambda net: offloading.hooks.add_hook_to_module(net, offloading.hooks.ModelHook()),
        lambda net: offloading.hooks.add_hook_to_module(net.proj_out, offloading.hooks.ModelHook()),
        lambda net: apply_group_offloading(net, torch.device("cpu"), offload_type="leaf_level"),
        lambda net: net.enable_layerwise_casting(torch.float16, torch.float32),
        lambda net: net.proj_out.register_forward_hook(lambda *args: None),
        lambda net: net.proj_out.register_forward_pre_hook(lambda *args: None),
    ],
)
def test_hooks_are_seen_wherever_they_are(hook):
    net = build("flux").transformer
    hook(net)
    assert runs_hooks(net) and mode_on_cuda(net) == "eager"
