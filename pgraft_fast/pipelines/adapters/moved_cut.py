"""A cut on another schedule or at another size than those of its training: what is different then, in a line."""

import math
from collections.abc import Mapping
from typing import Any

from pgraft_fast.diffusion.schedule import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.denoisers import denoiser_of

# Differences of log-SNR below this are rounding of a schedule's table.
_NATS = 0.05
# Sizes that differ by less show the same.
_RATIO = 1.1


def moved_by_schedule(scheduler: Any, cut: float, cut_logsnr: float) -> str | None:
    """What the same share of the steps is on this scheduler's schedule, where it is another noise; None where it is the
    same or the schedule is not known.
    """
    try:
        here = Schedule.from_diffusers(scheduler).cut_logsnr(cut)
    except InputError:
        return None
    if abs(here - cut_logsnr) <= _NATS:
        return None
    return (
        f"the cut at {cut:g} of the steps was trained at a log-SNR of {cut_logsnr:.2f}; on the schedule of this "
        f"{type(scheduler).__name__} that share is {here:.2f}. The handover stays at {cut_logsnr:.2f}"
    )


def moved_by_size(pipe: Any, arguments: Mapping[str, Any], trained: tuple[int, ...], cut_logsnr: float) -> str | None:
    """arguments: of a call. trained: shape (C, H, W) of the latents in training. Latents with R times as many
    positions show the same layout at a log-SNR that is log R lower. None where they are as many, or that is not known.
    """
    here = _positions(pipe, arguments, trained[0])
    ratio = 0.0 if here is None else here / math.prod(trained[1:])
    if ratio <= 0.0 or 1.0 / _RATIO < ratio < _RATIO:
        return None
    return (
        f"the adapter was trained on latents of {trained[1]} x {trained[2]}, and here are {ratio:.3g} times as many "
        f"positions: the same layout shows at a log-SNR that is {-math.log(ratio):+.2f} away, while the handover stays "
        f"at {cut_logsnr:.2f}. PGraftCallback(cut_logsnr=...) sets another"
    )


def _positions(pipe: Any, arguments: Mapping[str, Any], channels: int) -> float | None:
    """Of a sample's latents."""
    latents = arguments.get("latents")
    if latents is not None:
        # Packed ones have more channels and fewer places.
        return float(latents[0].numel() / channels)
    usual = getattr(pipe, "default_sample_size", None) or getattr(denoiser_of(pipe).config, "sample_size", None)
    sides = usual if isinstance(usual, (list, tuple)) else (usual, usual)
    scale = getattr(pipe, "vae_scale_factor", None)
    lengths = [
        pixels // scale if pixels and scale else side
        for pixels, side in zip((arguments.get("height"), arguments.get("width")), sides, strict=False)
    ]
    return None if None in lengths else float(math.prod(lengths))
