"""Vector fields f(x, u) of the shape of x: a perceptron for small states, a UNet for pictures."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.errors import InputError

_FREQUENCIES = 16
_LARGEST_PERCEPTRON = 1024


class Perceptron(nn.Module):
    """Fully connected, u as sines and cosines. x: (B, *shape). u: (B,) in [0, 1]. zero: the field starts at 0."""

    def __init__(self, shape: tuple[int, ...], width: int = 256, depth: int = 3, zero: bool = False) -> None:
        super().__init__()
        self.frequency: Tensor
        frequency = 2.0 * math.pi * torch.logspace(-1.0, 1.0, _FREQUENCIES)
        self.register_buffer("frequency", frequency, persistent=False)
        size = math.prod(shape)
        layers: list[nn.Module] = []
        for before, after in pairwise([size + 2 * _FREQUENCIES, *[width] * depth]):
            layers += [nn.Linear(before, after), nn.SiLU()]
        last = nn.Linear(width, size)
        nn.init.zeros_(last.bias)
        if zero:
            nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        phase = u[:, None].to(x.dtype) * self.frequency
        return self.layers(torch.cat((x.flatten(1), phase.sin(), phase.cos()), dim=1)).view_as(x)


class PictureField(nn.Module):
    """diffusers' UNet2DModel as a field on pictures (B, C, H, W). channels: of its levels, each halving the sides;
    attention: sides at which there is some. zero: the field starts at 0. Needs the extra `diffusers`.
    """

    def __init__(
        self, shape: tuple[int, ...], channels: tuple[int, ...] = (64, 128, 256), attention: tuple[int, ...] = (16,),
        layers: int = 2, zero: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % 2 ** (len(channels) - 1):
            levels = 2 ** (len(channels) - 1)
            raise InputError(f"shape={tuple(shape)}: a UNet needs (C, H, H) with H a multiple of {levels}")
        import diffusers

        unet: Any = diffusers.UNet2DModel
        sides = [shape[1] // 2**level for level in range(len(channels))]
        self.net: Any = unet(
            sample_size=shape[1],
            in_channels=shape[0],
            out_channels=shape[0],
            layers_per_block=layers,
            block_out_channels=channels,
            norm_num_groups=math.gcd(32, *channels),
            down_block_types=tuple("AttnDownBlock2D" if side in attention else "DownBlock2D" for side in sides),
            up_block_types=tuple("AttnUpBlock2D" if side in attention else "UpBlock2D" for side in reversed(sides)),
            add_attention=sides[-1] in attention,
        )
        if zero:
            nn.init.zeros_(self.net.conv_out.weight)
            nn.init.zeros_(self.net.conv_out.bias)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        # Its sinusoids are made for timesteps up to 1,000.
        return self.net(x, 1000.0 * u, return_dict=False)[0]


def make_field(shape: tuple[int, ...], config: dict[str, Any]) -> nn.Module:
    """A field by its config, {"kind": "perceptron" | "unet", ...arguments}, as `default_field` gives one."""
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    kind = arguments.pop("kind", None)
    kinds = {"perceptron": Perceptron, "unet": PictureField}
    if kind not in kinds:
        raise InputError(f"network kind {kind!r} is unknown; known: {', '.join(kinds)}")
    try:
        return kinds[kind](tuple(shape), **arguments)
    except TypeError as error:
        raise InputError(f"network {kind}: {error}") from error


def default_field(shape: tuple[int, ...]) -> dict[str, Any]:
    """What a corrector of states of this shape takes: a perceptron up to 1,024 numbers, else a UNet."""
    if math.prod(shape) <= _LARGEST_PERCEPTRON:
        return {"kind": "perceptron", "width": 256, "depth": 3}
    return {"kind": "unet", "channels": [64, 128, 256], "attention": [shape[-1] // 4]}
