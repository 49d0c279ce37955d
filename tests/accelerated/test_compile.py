"""Compiled denoisers in accelerated pipelines, on the processor."""

import shutil

import diffusers
import pytest
import torch
from accelerated.calls import call, off, taken_over

from pgraft_fast import accelerate, restore

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler for C++")


def tiny():
    """A dozen kernels: compiling takes most of a minute for the other tests' models."""
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, add_attention=False,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    pipe = diffusers.DDIMPipeline(unet.eval(), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.faults
def test_mode_compile():
    pipe = tiny()
    want = call(pipe, "ddim")
    accelerate(pipe, mode="compile")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for _ in range(3):
        assert off(call(pipe, "ddim"), want) < 1e-4
    assert taken_over(pipe)
    # Compiled once: the calls after the first bring nothing new.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    restore(pipe)
    assert off(call(pipe, "ddim"), want) == 0.0


@pytest.mark.parametrize("how", ["module", "in place"])
def test_compiled_by_the_user(how):
    """A backend that runs the graph as it is shows what is compiled, without waiting for a compiler."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    torch._dynamo.reset()
    pipe = tiny()
    want = call(pipe, "ddim")
    plain = pipe.unet
    if how == "module":
        pipe.unet = torch.compile(pipe.unet, backend=backend)
    else:
        pipe.unet.compile(backend=backend)
    accelerate(pipe)
    for _ in range(2):
        assert off(call(pipe, "ddim"), want) < 1e-4
    graphs = len(seen)
    for seed in (0, 1, 2):
        call(pipe, "ddim", seed)
    assert taken_over(pipe) and len(seen) == graphs
    assert "forward" not in vars(plain)
    restore(pipe)
    assert off(call(pipe, "ddim"), want) < 1e-4 and len(seen) == graphs
