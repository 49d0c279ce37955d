"""Latents to pictures, a slice at a time."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.finetune.memory import BatchSize


class Decoder:
    """decoder(latents) -> (n, 3, H, W) float32 pictures in [-1, 1].

    latents: (n, C, h, w) as the denoiser knows them: scaled and shifted by the VAE's config. slice: latents at once,
    halved when memory is full. A VAE in float16 whose config asks for it computes in float32.
    """

    def __init__(self, vae: Any, slice: int = 8) -> None:
        self._vae = vae
        config = vae.config
        if config.get("force_upcast") and vae.dtype is torch.float16:
            vae.to(torch.float32)
        self._scale = float(config.get("scaling_factor") or 1.0)
        self._shift = float(config.get("shift_factor") or 0.0)
        self._slice = BatchSize(slice, "vae")

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        found: list[Tensor] = []
        low = 0
        while low < latents.shape[0]:
            left = latents[low:]
            part = self._slice.run(partial(self._first, left))
            found.append(part)
            low += part.shape[0]
        return torch.cat(found)

    def _first(self, latents: Tensor, size: int) -> Tensor:
        return self._decode(latents[:size])

    def _decode(self, latents: Tensor) -> Tensor:
        own = latents.to(self._vae.dtype) / self._scale + self._shift
        return self._vae.decode(own, return_dict=False)[0].to(torch.float32).clamp(-1.0, 1.0)
