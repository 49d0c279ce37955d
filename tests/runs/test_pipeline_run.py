"""What a run says of a pipeline, and how it leaves it."""

import pytest
import torch
from fake_cuda import to_fake_cuda
from pipelines import build
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pgraft_fast as pf
from pgraft_fast.errors import InputError
from pgraft_fast.runs.pipeline_run import precision_line


@pytest.mark.parametrize(("dtype", "says"), [(torch.float32, True), (torch.bfloat16, False), (torch.float16, False)])
def test_float32_weights_on_a_gpu(dtype, says):
    with FakeTensorMode():
        line = precision_line(to_fake_cuda(nn.Linear(2, 2, dtype=dtype)))
    assert (line is not None) is says and (line is None or "pipe.to(torch.bfloat16)" in line)


def test_float32_weights_on_a_cpu():
    assert precision_line(nn.Linear(2, 2)) is None


def run(pipe, folder, **options):
    config = pf.PGraftConfig(
        steps=3, candidates=2, keep=1, prompts=1, epochs=1, batch_size=2, evaluate=2, lora=pf.Lora(rank=2),
        run=str(folder), **options,
    )  # fmt: skip
    call = {"height": 16, "width": 16}
    return pf.PGraftTrainer(
        pipe, lambda media, prompts: [float(sample.mean()) for sample in media], ["a dog", "a cat"], config, call=call,
        log=lambda line: None,
    ).train()  # fmt: skip


@pytest.mark.parametrize("before", [False, True])
def test_checkpointing_is_afterwards_as_it_was(tmp_path, before):
    pipe = build("sd")
    if before:
        pipe.unet.enable_gradient_checkpointing()
    run(pipe, tmp_path / "run", checkpointing=True)
    assert pipe.unet.is_gradient_checkpointing is before


def test_checkpointing_that_there_is_none_of(tmp_path):
    pipe = build("sd")
    pipe.unet._supports_gradient_checkpointing = False
    with pytest.raises(InputError, match=r"train.checkpointing: UNet2DConditionModel has none; leave it out"):
        run(pipe, tmp_path / "run", checkpointing=True)
