"""Rewards of any greyscale image batch (B, C, H, W) in [-1, 1], 1 being ink."""

from torch import Tensor


def symmetry(images: Tensor) -> Tensor:
    """1 - mean |x - mirrored x| / 2: 1 for left-right symmetric images. (B,) in [0, 1]."""
    images = images.clamp(-1.0, 1.0)
    return 1.0 - 0.5 * (images - images.flip(-1)).abs().flatten(1).mean(dim=1)


def stroke_mass(images: Tensor) -> Tensor:
    """Mean ink, (1 + mean x) / 2. (B,) in [0, 1]."""
    return 0.5 * (1.0 + images.clamp(-1.0, 1.0).flatten(1).mean(dim=1))
