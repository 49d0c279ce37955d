"""Pictures as CLIP's image encoder wants them, on the device that they are on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards.pixels import to_rgb

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
# PIL's numbers of its filters.
_FILTERS = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class ClipImages:
    """(B, C, H, W) in [-1, 1] -> (B, 3, h, w): resize, cut the middle out, (x - mean) / std.

    size: of the shorter side, or (height, width). crop: (height, width), None for no cut. filter: of the resize, with
    antialiasing. The picture is rounded to 8 bits before and after, as in CLIP's own preparation by PIL (Radford et al.
    2021); for pictures at most twice as tall as wide the two differ by at most 1/255 before the normalisation.
    """

    size: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = (224, 224)
    filter: str = "bicubic"
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD

    @classmethod
    def from_folder(cls, folder: Path, image_size: int) -> Self:
        """As the folder's preprocessor_config.json or processor_config.json says; CLIP's own numbers without one.

        Raises RewardError where the file is damaged or asks for another filter.
        """
        for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
            file = folder / name
            if file.is_file():
                try:
                    config = json.loads(file.read_bytes())
                    return cls._from_config(config if key is None else config[key], image_size)
                except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                    raise RewardError(f"{file}: is no image processor's config ({error})") from error
        return cls(image_size, (image_size, image_size))

    @classmethod
    def _from_config(cls, config: dict[str, Any], image_size: int) -> Self:
        size = config.get("size", image_size)
        if isinstance(size, dict):
            size = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
        crop = config.get("crop_size", image_size)
        if not isinstance(crop, dict):
            crop = {"height": crop, "width": crop}
        normalise = config.get("do_normalize", True)
        return cls(
            size=size if config.get("do_resize", True) else None,
            crop=(crop["height"], crop["width"]) if config.get("do_center_crop", True) else None,
            filter=_FILTERS[config.get("resample", 3)],
            mean=tuple(config.get("image_mean", _MEAN)) if normalise else (0.0, 0.0, 0.0),
            std=tuple(config.get("image_std", _STD)) if normalise else (1.0, 1.0, 1.0),
        )

    def __call__(self, samples: Tensor) -> Tensor:
        """float32 on the samples' device. Raises RewardError where the samples are no pictures."""
        images = to_rgb(samples)
        height, width = self._target(*images.shape[-2:])
        # PIL resizes rows, then columns, and rounds after each.
        for size in ((images.shape[-2], width), (height, width)):
            if size != tuple(images.shape[-2:]):
                images = F.interpolate(images, size=size, mode=self.filter, antialias=True, align_corners=False)
                images = (images.clamp(0.0, 1.0) * 255.0 + 0.5).floor() / 255.0
        if self.crop is not None:
            images = _middle(images, *self.crop)
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        short, long = min(height, width), max(height, width)
        long = self.size * long // short
        return (self.size, long) if height <= width else (long, self.size)


def _middle(images: Tensor, height: int, width: int) -> Tensor:
    """The middle (height, width); smaller pictures get black borders."""
    missing_y, missing_x = max(0, height - images.shape[-2]), max(0, width - images.shape[-1])
    if missing_y or missing_x:
        top, left = -(-missing_y // 2), -(-missing_x // 2)
        images = F.pad(images, (left, missing_x - left, top, missing_y - top))
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]
