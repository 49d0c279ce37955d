"""How the pipelines of diffusers that can be accelerated call their denoiser."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Family:
    """One kind of denoising loop.

    denoiser: attribute of the pipeline. time(t, x, denoiser): the denoiser's time argument for scheduler time t and
    model input x. float_out: the output is used in float32. refuses: call arguments under which the loop does more
    than one model call a step or changes on the way.
    """

    denoiser: str
    time: Callable[[Tensor, Tensor, Any], Tensor]
    float_out: bool = False
    refuses: tuple[str, ...] = ()


def _plain(t: Tensor, x: Tensor, denoiser: Any) -> Tensor:
    return t


def _each(t: Tensor, x: Tensor, denoiser: Any) -> Tensor:
    return t.expand(x.shape[0])


def _thousandth(t: Tensor, x: Tensor, denoiser: Any) -> Tensor:
    return t.expand(x.shape[0]).to(x.dtype) / 1000


def _scaled(t: Tensor, x: Tensor, denoiser: Any) -> Tensor:
    return t.expand(x.shape[0]) * denoiser.config.timestep_scale


_UNET = Family("unet", _plain)

FAMILIES: dict[str, Family] = {
    "DDPMPipeline": _UNET,
    "DDIMPipeline": _UNET,
    "StableDiffusionPipeline": _UNET,
    "StableDiffusionXLPipeline": _UNET,
    "StableDiffusion3Pipeline": Family("transformer", _each, refuses=("skip_guidance_layers",)),
    "FluxPipeline": Family("transformer", _thousandth),
    "PixArtAlphaPipeline": Family("transformer", _each),
    "PixArtSigmaPipeline": Family("transformer", _each),
    "SanaPipeline": Family("transformer", _scaled, float_out=True),
}


def denoiser_of(pipe: Any) -> Any:
    """The transformer or UNet of a pipeline, whatever its class; None where it has neither."""
    transformer = getattr(pipe, "transformer", None)
    return getattr(pipe, "unet", None) if transformer is None else transformer


def family_of(pipe: Any) -> Family | None:
    """The loop of a pipeline, by its class; None for classes that are not known."""
    return FAMILIES.get(type(pipe).__name__) if type(pipe).__module__.startswith("diffusers.") else None
