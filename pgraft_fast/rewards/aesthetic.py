"""How much people would like a picture, whatever it shows."""

import itertools
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards.clip_images import ClipImages
from pgraft_fast.rewards.local_models import load_model


class AestheticScore:
    """LAION's aesthetic predictor, version 2: linear layers on the CLIP ViT-L/14 embedding of a picture.

    f(e / |e|) with f five linear layers and nothing between them, 768 -> 1024 -> 128 -> 64 -> 16 -> 1; about 1 to 10.
    clip: folder of the CLIP model. weights: the layers, "sac+logos+ava1-l14-linearMSE" as .pth or .safetensors, its
    tensors layers.<n>.weight and layers.<n>.bias. dtype: of CLIP; the layers are in float32. device: the samples' own
    where None. Source: Schuhmann, improved-aesthetic-predictor, 2022.
    """

    name = "aesthetic"

    def __init__(
        self,
        clip: str | Path,
        weights: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.folder, self.weights, self.device, self.dtype = Path(clip), Path(weights), device, dtype
        self._model: Any = None
        self._placed = torch.device("cpu")
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._images = ClipImages()

    def prepare(self) -> None:
        """Load. Raises RewardError where files are missing, damaged or do not fit each other."""
        if self._model is not None:
            return
        model = load_model("CLIPModel", self.folder, self.dtype)
        # Only pictures are looked at.
        del model.text_model, model.text_projection
        self._images = ClipImages.from_folder(self.folder, model.config.vision_config.image_size)
        self._layers = load_layers(self.weights, model.config.projection_dim)
        self._model = model

    def close(self) -> None:
        """Let go of the weights; the next call loads them again."""
        self._model, self._layers, self._placed = None, [], torch.device("cpu")

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """samples: (B, C, H, W) in [-1, 1]. Returns (B,) float32 on the model's device. Raises RewardError."""
        self.prepare()
        device = torch.device(samples.device if self.device is None else self.device)
        if self._placed != device:
            self._placed = device
            self._model.to(device)
            self._layers = [(weight.to(device), bias.to(device)) for weight, bias in self._layers]
        pixels = self._images(samples.to(device)).to(self.dtype)
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        x = F.normalize(self._model.visual_projection(pooled).float(), dim=-1)
        for weight, bias in self._layers:
            x = F.linear(x, weight, bias)
        return x.squeeze(-1)


def load_layers(file: Path, width: int) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of every layer in float32, from `width` numbers to one. Raises RewardError."""
    if not file.is_file():
        raise RewardError(f"{file}: there is no such file")
    try:
        if file.suffix == ".safetensors":
            tensors = load_file(file)
        else:
            _check_not_packed(file)
            with warnings.catch_warnings():
                # Of files that torch.save did not write.
                warnings.simplefilter("ignore")
                tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RewardError(f"{file}: is not a file of weights ({type(error).__name__})") from error
    if not isinstance(tensors, dict):
        raise RewardError(f"{file}: holds {type(tensors).__name__}, not tensors by name")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()):
        raise RewardError(f"{file}: holds other things than tensors by name")
    layers = []
    for name in sorted(tensors, key=_number):
        if name.endswith(".weight"):
            bias = tensors.get(name.removesuffix("weight") + "bias", torch.empty(0))
            layers.append((tensors[name].float(), bias.float()))
    sizes = [width, *(weight.shape[0] for weight, _ in layers)]
    shapes = [tuple(weight.shape) for weight, _ in layers]
    expected = [(high, low) for low, high in itertools.pairwise(sizes)]
    if not layers or shapes != expected or sizes[-1] != 1 or any(b.shape != w.shape[:1] for w, b in layers):
        raise RewardError(
            f"{file}: its layers are {shapes or 'none'}, which do not lead from the {width} numbers of the CLIP model "
            "to one; the published ones need CLIP ViT-L/14"
        )
    return layers


def _check_not_packed(file: Path) -> None:
    """torch.save stores; what is compressed may be a thousand times as large in memory. Raises ValueError."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > file.stat().st_size:
                raise ValueError("compressed")


def _number(name: str) -> int:
    match = re.search(r"(\d+)\.(weight|bias)$", name)
    return int(match[1]) if match else -1
