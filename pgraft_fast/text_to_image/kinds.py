"""How each kind of pipeline encodes prompts and calls its denoiser."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule
from pgraft_fast.diffusion.from_diffusers import parameterization_from_diffusers
from pgraft_fast.errors import InputError

Columns = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """denoiser: attribute of the pipeline. encode(pipe, texts, max_length): a row a text in each column.
    constants(pipe, height, width): what every call gets, in pixels. call(net, x, t, columns, constants): the network's
    answer to latents x (B, C, H, W) at times t (B,) in [0, 1]. embedded_guidance: the scale is an input of the network,
    not a second call.
    """

    name: str
    denoiser: str
    encode: Callable[[Any, list[str], int], Columns]
    constants: Callable[[Any, int, int], Columns]
    call: Callable[[Any, Tensor, Tensor, Columns, Columns], Tensor]
    embedded_guidance: bool = False

    def net(self, pipe: Any) -> Any:
        """The denoiser."""
        return getattr(pipe, self.denoiser)

    def schedule(self, pipe: Any, height: int, width: int) -> tuple[Schedule, str]:
        """Noise law and parameterization of the pipeline's scheduler, for pictures of this size in pixels."""
        config = pipe.scheduler.config
        shift = _dynamic_shift(config, height, width, pipe) if config.get("use_dynamic_shifting") else None
        return Schedule.from_diffusers(pipe.scheduler, shift), parameterization_from_diffusers(pipe.scheduler)


def kind_of(pipe: Any) -> Kind:
    """By the pipeline's class. Raises InputError for one that is not known."""
    name = type(pipe).__name__
    if name not in KINDS:
        raise InputError(f"{name}: cannot be fine-tuned here; known: {', '.join(KINDS)}")
    return KINDS[name]


def _dynamic_shift(config: Any, height: int, width: int, pipe: Any) -> float:
    """exp(mu), mu linear in the number of packed latents (Esser et al. 2024, arXiv 2403.03206, and Flux's sampler)."""
    side = 2 * pipe.vae_scale_factor
    tokens = (height // side) * (width // side)
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return math.exp(base + (most - base) * (tokens - low) / (high - low))


def _steps(pipe_or_net: Any) -> int:
    return int(getattr(pipe_or_net.config, "num_train_timesteps", 1000))


def _encode_sd(pipe: Any, texts: list[str], max_length: int) -> Columns:
    return {"encoder_hidden_states": pipe.encode_prompt(texts, pipe.device, 1, False)[0]}


def _call_sd(net: Any, x: Tensor, t: Tensor, columns: Columns, constants: Columns) -> Tensor:
    # Entry i of the scheduler's table is t = (i + 1) / T.
    return net(x, t * constants["steps"] - 1.0, encoder_hidden_states=columns["encoder_hidden_states"],
               return_dict=False)[0]  # fmt: skip


def _constants_steps(pipe: Any, height: int, width: int) -> Columns:
    return {"steps": torch.tensor(float(_steps(pipe.scheduler)))}


def _encode_sdxl(pipe: Any, texts: list[str], max_length: int) -> Columns:
    states, _, pooled, _ = pipe.encode_prompt(texts, device=pipe.device, do_classifier_free_guidance=False)
    if pipe.config.get("force_zeros_for_empty_prompt"):
        # As the pipeline does for a negative prompt that is not given.
        full = torch.tensor([float(bool(text)) for text in texts], device=states.device, dtype=states.dtype)
        states, pooled = states * full[:, None, None], pooled * full[:, None]
    return {"encoder_hidden_states": states, "text_embeds": pooled}


def _constants_sdxl(pipe: Any, height: int, width: int) -> Columns:
    size = (height, width)
    width_of_text = int(pipe.text_encoder_2.config.projection_dim)
    ids = pipe._get_add_time_ids(size, (0, 0), size, torch.float32, text_encoder_projection_dim=width_of_text)
    return {"time_ids": ids, **_constants_steps(pipe, height, width)}


def _call_sdxl(net: Any, x: Tensor, t: Tensor, columns: Columns, constants: Columns) -> Tensor:
    added = {
        "text_embeds": columns["text_embeds"],
        "time_ids": constants["time_ids"].to(x.dtype).expand(x.shape[0], -1),
    }
    return net(x, t * constants["steps"] - 1.0, encoder_hidden_states=columns["encoder_hidden_states"],
               added_cond_kwargs=added, return_dict=False)[0]  # fmt: skip


def _encode_sd3(pipe: Any, texts: list[str], max_length: int) -> Columns:
    states, _, pooled, _ = pipe.encode_prompt(
        texts, None, None, device=pipe.device, do_classifier_free_guidance=False, max_sequence_length=max_length
    )
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def _call_sd3(net: Any, x: Tensor, t: Tensor, columns: Columns, constants: Columns) -> Tensor:
    return net(hidden_states=x, timestep=t * constants["steps"], return_dict=False, **columns)[0]


def _encode_flux(pipe: Any, texts: list[str], max_length: int) -> Columns:
    states, pooled, _ = pipe.encode_prompt(texts, None, device=pipe.device, max_sequence_length=max_length)
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


_SD = Kind("sd", "unet", _encode_sd, _constants_steps, _call_sd)

KINDS: dict[str, Kind] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionXLPipeline": Kind("sdxl", "unet", _encode_sdxl, _constants_sdxl, _call_sdxl),
    "StableDiffusion3Pipeline": Kind("sd3", "transformer", _encode_sd3, _constants_steps, _call_sd3),
    "FluxPipeline": Kind("flux", "transformer", _encode_flux, _constants_flux, _call_flux, embedded_guidance=True),
}


def latent_shape(pipe: Any, height: int, width: int) -> tuple[int, int, int]:
    """(C, H, W) of the latents of pictures of this size in pixels. Raises InputError for sides that do not fit."""
    kind, factor = kind_of(pipe), int(pipe.vae_scale_factor)
    unit = factor * 2 if kind.name in ("flux", "sd3") else factor
    sides: Sequence[int] = (height, width)
    if any(side < unit or side % unit for side in sides):
        raise InputError(f"height={height}, width={width}: both must be multiples of {unit} for {type(pipe).__name__}")
    return (int(pipe.vae.config.latent_channels), height // factor, width // factor)
