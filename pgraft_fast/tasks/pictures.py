"""A folder of pictures as data of a flow: CelebA-HQ, LSUN or one's own."""

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import DecompressionBombError
from torch import Tensor

from pgraft_fast.diffusion import Stream, normal
from pgraft_fast.errors import InputError
from pgraft_fast.finetune.identity import sha256_of_files

# What Pillow raises for a file that is no picture, a damaged one, or a small one that would be a huge picture.
UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, EOFError, DecompressionBombError)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Decoded pictures are kept in memory up to this many bytes.
_CACHE = 8 << 30
_READERS = 8
# Pictures that others are compared with, at most.
_REFERENCE = 10_000


@dataclass(frozen=True)
class Pictures:
    """The pictures of a folder, its subfolders included, by their sorted names; cut square about the middle and
    resized.

    Values in [-1, 1], (B, 3, size, size), or one channel where `grey`. sigma: of the noise added anew in each step.
    Raises InputError for an empty folder, and for a file that is no picture.
    """

    paths: tuple[Path, ...]
    size: int
    grey: bool = False
    sigma: float = 0.0
    seed: int = 0
    cache: dict[int, Tensor] | None = None
    slow: bool = True

    @classmethod
    def of(cls, folder: Path, size: int, *, grey: bool = False, sigma: float = 0.0, seed: int = 0) -> "Pictures":
        """Find them."""
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of pictures; download them and name it in data.folder")
        paths = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES))
        if not paths:
            raise InputError(f"{folder}: no picture in it ({', '.join(_SUFFIXES)})")
        each = size * size * (1 if grey else 3)
        return cls(paths, size, grey, sigma, seed, {} if each * len(paths) <= _CACHE else None)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one."""
        return (1 if self.grey else 3, self.size, self.size)

    def rows(self, index: Tensor, step: int) -> Tensor:
        """See `inverse_noise.Source`."""
        rows = self.at(index)
        if self.sigma == 0.0:
            return rows
        place = torch.arange(rows.shape[0])
        return rows + self.sigma * normal(self.seed, place, step, self.shape, Stream.DATA_NOISE)

    def draw(self, index: Tensor, seed: int) -> Tensor:
        """Pictures by their numbers, in turn, each number with noise of its own."""
        return self.at(index % len(self)) + self.sigma * normal(seed, index, 1 << 20, self.shape, Stream.DATA_NOISE)

    def at(self, index: Tensor) -> Tensor:
        """(B, C, size, size) float32, unperturbed."""
        numbers = index.tolist()
        missing = [number for number in numbers if self.cache is None or number not in self.cache]
        if len(missing) > 1:
            # Pillow decodes and resizes without holding up other threads.
            with ThreadPoolExecutor(_READERS) as pool:
                decoded = torch.stack(list(pool.map(self._picture, numbers)))
        else:
            decoded = torch.stack([self._picture(number) for number in numbers])
        return decoded.to(torch.float32) / 127.5 - 1.0

    def identity(self) -> dict[str, object]:
        """JSON that names this very set: number, size, and a hash of the files in their order."""
        return {
            "pictures": len(self),
            "size": self.size,
            "grey": self.grey,
            "sigma": self.sigma,
            "sha256": sha256_of_files({f"{number:09d} {path.name}": path for number, path in enumerate(self.paths)}),
        }

    def _picture(self, number: int) -> Tensor:
        if self.cache is not None and number in self.cache:
            return self.cache[number]
        from PIL import Image

        path = self.paths[number]
        try:
            with Image.open(path) as image:
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                square = image.convert("L" if self.grey else "RGB").crop((left, top, left + side, top + side))
                pixels = np.array(square.resize((self.size, self.size), Image.Resampling.LANCZOS))
        except UNREADABLE as error:
            raise InputError(f"{path}: cannot be read as a picture ({error})") from error
        picture = torch.from_numpy(pixels).view(self.size, self.size, -1).permute(2, 0, 1).contiguous()
        if self.cache is not None:
            self.cache[number] = picture
        return picture


def folder_features(folder: Path, size: int, features: Callable[[Tensor], Tensor]) -> Tensor:
    """Features (n, d) of the pictures of a folder, at most 10,000. Raises InputError."""
    pictures = Pictures.of(folder, size)
    numbers = torch.arange(min(len(pictures), _REFERENCE))
    with torch.no_grad():
        return torch.cat([features(pictures.at(part)).flatten(1).cpu() for part in numbers.split(100)])


def is_picture(value: object) -> bool:
    """Whether this is the name of a file with a picture."""
    return isinstance(value, str) and value.lower().endswith(_SUFFIXES)


def thumbnail_features(x: Tensor) -> Tensor:
    """(n, 8 8 C): the picture in 8 x 8 areas. A plain stand-in where no network's weights are at hand."""
    return F.adaptive_avg_pool2d(x, 8).flatten(1)


def to_pictures(x: Tensor) -> np.ndarray:
    """(n, C, H, W) in [-1, 1] as (n, H, W, 3) or (n, H, W) uint8."""
    levels = ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).cpu()
    return levels[:, 0].numpy() if levels.shape[1] == 1 else levels.permute(0, 2, 3, 1).numpy()
