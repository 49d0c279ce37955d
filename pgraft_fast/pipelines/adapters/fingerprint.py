"""A hash that tells one set of base weights from another in well under a second, whatever the model's size."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.finetune.identity import base_weights

SAMPLE = 1024


def base_fingerprint(denoiser: Any) -> str:
    """SHA-256 in hex of the base weights' names, shapes and a sample of their values.

    Of each tensor every n-th value is taken, so that it is at most 1,024 of them, rounded to float16: weights of one
    file loaded as float32 or as float16 have the same fingerprint. Loaded as bfloat16 they have it only where the file
    itself is bfloat16; quantized weights have another. A fine-tuned copy differs in nearly every value, an edit of
    single values between the sampled ones is not seen. LoRA layers, attached or not, do not count.

    denoiser: a model of diffusers, on any device. Raises InputError for weights that are not in memory (sequential
    offloading).
    """
    weights = sorted(base_weights(uncompiled(denoiser)).items())
    if any(weight.is_meta for _, weight in weights):
        raise InputError(
            f"{type(denoiser).__name__} is offloaded, its weights cannot be read: take the fingerprint before"
        )
    shapes = [(name, list(weight.shape)) for name, weight in weights]
    # One copy to the host for all tensors of a device.
    values = [_sample(weight) for _, weight in weights]
    devices = sorted({str(value.device) for value in values})
    host = {device: torch.cat([v for v in values if str(v.device) == device]).cpu() for device in devices}
    taken = dict.fromkeys(devices, 0)
    digest = hashlib.sha256(json.dumps(shapes).encode())
    for value in values:
        device = str(value.device)
        start, taken[device] = taken[device], taken[device] + value.numel()
        digest.update(host[device][start : taken[device]].numpy().tobytes())
    return digest.hexdigest()


def uncompiled(denoiser: Any) -> Any:
    """The model inside of what torch.compile made of it."""
    return getattr(denoiser, "_orig_mod", denoiser)


def _sample(weight: Tensor) -> Tensor:
    if hasattr(weight, "full_tensor"):
        # Of a sharded one; on all ranks.
        weight = weight.full_tensor()
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // SAMPLE))].to(torch.float16)
