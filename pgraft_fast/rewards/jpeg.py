"""How small or large a picture's JPEG file is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pgraft_fast.rewards.pixels import to_file, to_pil


class JpegSize:
    """Size of the JPEG file in kB (1000 bytes) at quality 95, or its negative where `small` files are wanted.

    The rewards jpeg_incompressibility and jpeg_compressibility of Black et al. 2023 (DDPO), section 5.
    """

    def __init__(self, small: bool = False) -> None:
        self.small = small
        self.name = "jpeg_compressibility" if small else "jpeg_incompressibility"

    def __call__(self, samples: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """samples: (B, C, H, W) in [-1, 1], C = 1 or 3. Returns (B,) float32 on their device. Raises RewardError."""
        sizes = [len(to_file(picture, "jpeg", quality=95)) / 1000.0 for picture in to_pil(samples)]
        return torch.tensor([-s if self.small else s for s in sizes], device=samples.device)
