"""Fake CUDA tensors in a build without CUDA: what may not be captured in a graph raises here."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NoTransfers(TorchDispatchMode):
    """Raises where an operation moves a tensor between host and device, or reads a value back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "cuda":
            raise AssertionError("a value is read back")
        if func is torch.ops.aten.lift_fresh.default and args[0].device.type == "cuda":
            raise AssertionError("a tensor is made of numbers of the host")
        out = func(*args, **kwargs)
        sources = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        made = {leaf.device.type for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        copies = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if func in copies and len(sources | made) > 1:
            raise AssertionError(f"{func} moves {sorted(sources)} to {sorted(made)}")
        return out


def to_fake_cuda(module):
    """The module with fake CUDA weights in place of its own; inside of FakeTensorMode."""
    for submodule in module.modules():
        for held in (submodule._parameters, submodule._buffers):
            for name, value in held.items():
                if value is not None:
                    fake = on_fake_cuda(value)
                    held[name] = nn.Parameter(fake, value.requires_grad) if isinstance(value, nn.Parameter) else fake
    return module


def on_fake_cuda(value):
    """A fake CUDA tensor of this one's shape and dtype; inside of FakeTensorMode."""
    return torch.empty(value.shape, dtype=value.dtype, device="cuda")


def write_unseen(monkeypatch):
    """Operations on lists leave versions as they are, as they do on CUDA."""
    for name in ("_foreach_lerp_", "_foreach_copy_", "_fused_adamw_"):
        monkeypatch.setattr(torch, name, _unseen(getattr(torch, name)))


def _unseen(function):
    def call(weights, *arguments, **options):
        with torch.autograd._unsafe_preserve_version_counter(tuple(weights)):
            return function(weights, *arguments, **options)

    return call
