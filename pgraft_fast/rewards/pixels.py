"""Pictures as 8-bit numbers, which is what is saved, shown and published scores are of."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pgraft_fast.rewards.protocol import RewardMisuseError


def to_rgb(samples: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1], C = 1 or 3, as (B, 3, H, W) float32 in [0, 1], rounded to 1/255. Keeps nan.

    Raises RewardMisuseError.
    """
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise RewardMisuseError(
            f"samples of shape {tuple(samples.shape)} are no pictures: (B, 3, H, W) or (B, 1, H, W)"
        )
    return (_levels(samples) / 255.0).expand(-1, 3, -1, -1)


def to_bytes(samples: Tensor) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] as (B, H, W, C) uint8 on the CPU."""
    return np.ascontiguousarray(_levels(samples).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def to_pil(samples: Tensor) -> list[Image.Image]:
    """(B, C, H, W) in [-1, 1], C = 1 or 3, as B pictures in RGB. Raises RewardError."""
    return [Image.fromarray(picture) for picture in to_bytes(2.0 * to_rgb(samples) - 1.0)]


def to_file(picture: Image.Image, kind: str, **options: int) -> bytes:
    """The picture's file; kind: "jpeg" or "png"."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _levels(samples: Tensor) -> Tensor:
    return ((samples.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round()
