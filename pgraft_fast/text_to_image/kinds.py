"""How each kind of pipeline encodes prompts and calls its denoiser."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule
from pgraft_fast.diffusion.from_diffusers import parameterization_from_diffusers
from pgraft_fast.errors import InputError
from pgraft_fast.text_to_image.images import Unscale

Columns = dict[str, Tensor]
# None stands for a negative prompt that is not given.
Texts = Sequence[str | None]


@dataclass(frozen=True)
class Kind:
    """denoiser: attribute of the pipeline. encode(pipe, texts, max_length): a row a text in each column.
    constants(pipe, height, width): what every call gets, in pixels. call(net, x, t, columns, constants): the network's
    answer to latents x (B, C, H, W) at times t (B,) in [0, 1]. unscale(config of the VAE): see
    `Unscale`. embedded_guidance: the guidance scale is an
    input of the network, not a second call. patch: sides of a token in latents.
    """

    name: str
    denoiser: str
    encode: Callable[[Any, Texts, int], Columns]
    constants: Callable[[Any, int, int], Columns]
    call: Callable[[Any, Tensor, Tensor, Columns, Columns], Tensor]
    unscale: Callable[[Any], Unscale]
    embedded_guidance: bool = False
    patch: int = 1

    def net(self, pipe: Any) -> Any:
        """The denoiser."""
        return getattr(pipe, self.denoiser)

    def schedule(self, pipe: Any, height: int, width: int) -> tuple[Schedule, str]:
        """Noise law and parameterization of the pipeline's scheduler, for pictures of this size in pixels."""
        config = pipe.scheduler.config
        side = self.patch * pipe.vae_scale_factor
        tokens = (height // side) * (width // side)
        shift = _dynamic_shift(config, tokens) if config.get("use_dynamic_shifting") else None
        return Schedule.from_diffusers(pipe.scheduler, shift), parameterization_from_diffusers(pipe.scheduler)


def kind_of(pipe: Any) -> Kind:
    """By the pipeline's class and its denoiser's config. Raises InputError for a class that is not known."""
    name = type(pipe).__name__
    if name not in KINDS:
        raise InputError(f"{name}: cannot be fine-tuned here; known: {', '.join(KINDS)}")
    kind = KINDS[name]
    config = kind.net(pipe).config
    if kind.name == "sd3":
        kind = replace(kind, patch=int(config.get("patch_size", 2)))
    # UNets distilled from guided ones, as those of latent consistency models.
    return replace(kind, embedded_guidance=True) if config.get("time_cond_proj_dim") else kind


def _dynamic_shift(config: Any, tokens: int) -> float:
    """exp(mu), or mu where the shift is linear; mu linear in the number of tokens of a picture (Esser et al. 2024,
    arXiv 2403.03206, and Flux's sampler).
    """
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = base + (most - base) * (tokens - low) / (high - low)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


def _plain(texts: Texts) -> list[str]:
    return ["" if text is None else text for text in texts]


def _scaled(config: Any) -> Unscale:
    """Of Stable Diffusion 1 and 2, which knows no shift."""
    return Unscale(config.scaling_factor)


def _scaled_by_channel(config: Any) -> Unscale:
    """Of XL: with mean and standard deviation of each channel where the VAE has both."""
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is None or deviation is None:
        return _scaled(config)
    return Unscale(config.scaling_factor, shift=list(mean), deviation=list(deviation))


def _scaled_and_shifted(config: Any) -> Unscale:
    shift = config.get("shift_factor")
    return Unscale(config.scaling_factor, shift=0.0 if shift is None else shift)


def _steps(pipe_or_net: Any) -> int:
    return int(getattr(pipe_or_net.config, "num_train_timesteps", 1000))


def _encode_sd(pipe: Any, texts: Texts, max_length: int) -> Columns:
    return {"encoder_hidden_states": pipe.encode_prompt(_plain(texts), pipe.device, 1, False)[0]}


def _call_sd(net: Any, x: Tensor, t: Tensor, columns: Columns, constants: Columns) -> Tensor:
    # Entry i of the scheduler's table is t = (i + 1) / T.
    return net(x, t * constants["steps"] - 1.0, encoder_hidden_states=columns["encoder_hidden_states"],
               timestep_cond=_guidance_embedding(net, x, constants), return_dict=False)[0]  # fmt: skip


def _guidance_embedding(net: Any, x: Tensor, constants: Columns) -> Tensor | None:
    """(B, d): sines and cosines of the guidance scale, or None where it is no input of the UNet (Meng et al. 2023,
    arXiv 2210.03142; as in diffusers' `get_guidance_scale_embedding`).
    """
    size = net.config.time_cond_proj_dim
    if not size:
        return None
    half = size // 2
    rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (constants["guidance"] - 1.0) * rates
    found = torch.nn.functional.pad(torch.cat((angles.sin(), angles.cos())), (0, size % 2))
    return found.to(x.dtype).expand(x.shape[0], -1)


def _constants_steps(pipe: Any, height: int, width: int) -> Columns:
    return {"steps": torch.tensor(float(_steps(pipe.scheduler)))}


def _encode_sdxl(pipe: Any, texts: Texts, max_length: int) -> Columns:
    states, _, pooled, _ = pipe.encode_prompt(_plain(texts), device=pipe.device, do_classifier_free_guidance=False)
    if pipe.config.get("force_zeros_for_empty_prompt"):
        full = torch.tensor([float(text is not None) for text in texts], device=states.device, dtype=states.dtype)
        states, pooled = states * full[:, None, None], pooled * full[:, None]
    return {"encoder_hidden_states": states, "text_embeds": pooled}


def _constants_sdxl(pipe: Any, height: int, width: int) -> Columns:
    size = (height, width)
    width_of_text = int(pipe.text_encoder_2.config.projection_dim)
    try:
        ids = pipe._get_add_time_ids(size, (0, 0), size, torch.float32, text_encoder_projection_dim=width_of_text)
    except ValueError as error:
        raise InputError(f"{type(pipe).__name__}: {type(pipe.unet).__name__} takes other sizes ({error})") from error
    return {"time_ids": ids, **_constants_steps(pipe, height, width)}


def _call_sdxl(net: Any, x: Tensor, t: Tensor, columns: Columns, constants: Columns) -> Tensor:
    added = {
        "text_embeds": columns["text_embeds"],
        "time_ids": constants["time_ids"].to(x.dtype).expand(x.shape[0], -1),
    }
    return net(x, t * constants["steps"] - 1.0, encoder_hidden_states=columns["encoder_hidden_states"],
               added_cond_kwargs=added, timestep_cond=_guidance_embedding(net, x, constants),
               return_dict=False)[0]  # fmt: skip


def _encode_sd3(pipe: Any, texts: Texts, max_length: int) -> Columns:
    states, _, pooled, _ = pipe.encode_prompt(
        _plain(texts), None, None, device=pipe.device, do_classifier_free_guidance=False, max_sequence_length=max_length
    )
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def _call_sd3(net: Any, x: Tensor, t: Tensor, columns: Columns, constants: Columns) -> Tensor:
    return net(hidden_states=x, timestep=t * constants["steps"], return_dict=False, **columns)[0]


def _encode_flux(pipe: Any, texts: Texts, max_length: int) -> Columns:
    states, pooled, _ = pipe.encode_prompt(_plain(texts), None, device=pipe.device, max_sequence_length=max_length)
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def _constants_flux(pipe: Any, height: int, width: int) -> Columns:
    side = 2 * pipe.vae_scale_factor
    rows, across = height // side, width // side
    ids = torch.zeros(rows, across, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(across)[None, :]
    return {"img_ids": ids.reshape(-1, 3)}


def _call_flux(net: Any, x: Tensor, t: Tensor, columns: Columns, constants: Columns) -> Tensor:
    batch, channels, height, width = x.shape
    # Patches of 2 x 2 as tokens.
    packed = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    packed = packed.reshape(batch, -1, channels * 4)
    states = columns["encoder_hidden_states"]
    guidance = constants["guidance"].expand(batch) if net.config.guidance_embeds else None
    out = net(
        hidden_states=packed, timestep=t.to(x.dtype), guidance=guidance, txt_ids=states.new_zeros(states.shape[1], 3),
        img_ids=constants["img_ids"].to(x.dtype), return_dict=False, **columns,
    )[0]  # fmt: skip
    return out.view(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


KINDS: dict[str, Kind] = {
    "StableDiffusionPipeline": Kind("sd", "unet", _encode_sd, _constants_steps, _call_sd, _scaled),
    "StableDiffusionXLPipeline": Kind("sdxl", "unet", _encode_sdxl, _constants_sdxl, _call_sdxl, _scaled_by_channel),
    "StableDiffusion3Pipeline": Kind(
        "sd3", "transformer", _encode_sd3, _constants_steps, _call_sd3, _scaled_and_shifted, patch=2
    ),
    "FluxPipeline": Kind(
        "flux", "transformer", _encode_flux, _constants_flux, _call_flux, _scaled_and_shifted, embedded_guidance=True,
        patch=2,
    ),
}  # fmt: skip


def latent_shape(pipe: Any, height: int, width: int) -> tuple[int, int, int]:
    """(C, H, W) of the latents of pictures of this size in pixels. Raises InputError for sides that do not fit."""
    kind, factor = kind_of(pipe), int(pipe.vae_scale_factor)
    unit = factor * kind.patch
    sides: Sequence[int] = (height, width)
    if any(side < unit or side % unit for side in sides):
        raise InputError(f"height={height}, width={width}: both must be multiples of {unit} for {type(pipe).__name__}")
    return (int(pipe.vae.config.latent_channels), height // factor, width // factor)
