"""How far two ways to compute the same may be apart, by dtype and device."""

from types import SimpleNamespace as Named

import pytest
import torch

from pgraft_fast.sampling.rounding import allowed_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("convolutions", "products", "every", "tf32"),
    [
        ("tf32", "none", "none", True), ("none", "tf32", "none", True), ("none", "none", "tf32", True),
        ("none", "none", "none", False), ("ieee", "ieee", "ieee", False),
    ],
)  # fmt: skip
def test_float32_on_cuda_may_be_tf32(monkeypatch, convolutions, products, every, tf32):
    """A sample alone was 1.5e-4 off the same one beside another on an H200, with torch's own settings."""
    backends = Named(
        fp32_precision=every, cudnn=Named(conv=Named(fp32_precision=convolutions)),
        cuda=Named(matmul=Named(fp32_precision=products)),
    )  # fmt: skip
    monkeypatch.setattr(torch, "backends", backends)
    assert (allowed_for(torch.float32, CUDA) > 1e-3) is tf32
    assert allowed_for(torch.float32, CPU) == 1e-4
    assert allowed_for(torch.bfloat16, CUDA) == allowed_for(torch.bfloat16, CPU) == 0.1
