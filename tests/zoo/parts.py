"""What several pipelines of the zoo share: weights that let everything through, pictures, a flow scheduler."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

# What a call says where nothing else has to be said.
PROMPT = {"prompt": "a red cube"}


def lively(model: Any, gain: float = 1.0) -> Any:
    """Draw the weights again so that signals keep their size: nothing is zero, as many last layers are at first.

    Matrices and kernels are normal, gain / sqrt(inputs) wide; a tenth is added to what is one number a channel.
    """
    # Depthwise and grouped kernels have in their second place what a group reads.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, gain / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def picture(side: int = 16) -> Image.Image:
    """Colours that change from edge to edge."""
    down, across = np.mgrid[0:side, 0:side] / (side - 1)
    pixels = np.stack([down, across, 0.5 + 0.5 * np.sin(6.0 * down * across)], axis=-1)
    return Image.fromarray((255.0 * pixels).round().astype(np.uint8))


def mask(side: int = 16) -> Image.Image:
    """White is what an inpainting draws anew: the left half."""
    pixels = np.zeros((side, side), np.uint8)
    pixels[:, : side // 2] = 255
    return Image.fromarray(pixels)


def flow(**more: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    """Euler's steps of a flow."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**more)
