"""Latents to pictures, a slice at a time."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.finetune.memory import BatchSize


@dataclass(frozen=True)
class Unscale:
    """What the VAE decodes is latents deviation / factor + shift; numbers, or one a channel."""

    factor: float
    shift: float | list[float] = 0.0
    deviation: float | list[float] = 1.0

    def __call__(self, latents: Tensor) -> Tensor:
        """(n, C, h, w) float32."""
        deviation, shift = (
            torch.tensor(value, device=latents.device).view(-1, 1, 1) for value in (self.deviation, self.shift)
        )
        return latents * deviation / self.factor + shift


class Decoder:
    """decoder(latents) -> (n, 3, H, W) float32 pictures in [-1, 1].

    latents: (n, C, h, w) as the denoiser knows them. slice: latents at once, halved when memory is full. unscale:
    default by the VAE's scaling and shift factor. A VAE in float16 whose config asks for it computes in float32.
    """

    def __init__(self, vae: Any, slice: int = 8, unscale: Unscale | None = None) -> None:
        config = vae.config
        self._vae = vae
        self._unscale = (
            Unscale(config.scaling_factor, config.get("shift_factor") or 0.0) if unscale is None else unscale
        )
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
        vae = self._vae
        if vae.dtype is torch.float16 and vae.config.get("force_upcast"):
            vae.to(torch.float32)
        own = self._unscale(latents.to(torch.float32)).to(vae.dtype)
        return vae.decode(own, return_dict=False)[0].to(torch.float32).clamp(-1.0, 1.0)
