"""Corrected noise in diffusers pipelines with a flow-matching scheduler, conditional ones too."""

import inspect
import math
from typing import Any

from torch import Tensor

from pgraft_fast.diffusion.noise_laws import LinearFlow
from pgraft_fast.diffusion.schedule import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.inverse_noise import NoiseCorrector
from pgraft_fast.pipelines.views import like, view


class CorrectedPipeline:
    """The pipeline, started from corrected noise: the same call, arguments and results.

        better = CorrectedPipeline(pipe, NoiseCorrector.load("corrector"))
        better("a red circle", num_inference_steps=20)

    The noise that the pipeline draws goes through the corrector, and nothing else changes; latents that the caller
    gives are taken as they are. Everything else of the pipeline is found here, too. Raises InputError for a scheduler
    that is no flow's, for noise of another shape than the corrector's, and for another number of steps than it was made
    for.
    """

    def __init__(self, pipe: Any, corrector: NoiseCorrector) -> None:
        if not hasattr(pipe, "scheduler") or not hasattr(pipe, "prepare_latents"):
            raise InputError(f"CorrectedPipeline needs a pipeline that prepares latents, got {type(pipe).__name__}")
        if "strength" in inspect.signature(pipe.__call__).parameters:
            raise InputError(f"{type(pipe).__name__} starts from a picture, not from noise: nothing can be corrected")
        if not isinstance(Schedule.from_diffusers(pipe.scheduler, shift=1.0).law, LinearFlow):
            raise InputError(f"CorrectedPipeline needs a flow-matching scheduler, got {type(pipe.scheduler).__name__}")
        self.pipe, self.corrector = pipe, corrector

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pipe, has_latents = self.pipe, kwargs.get("latents") is not None
        set_timesteps = like(pipe.scheduler.set_timesteps, lambda *a, **k: self._set_timesteps(has_latents, a, k))
        members = {
            "prepare_latents": like(pipe.prepare_latents, lambda *a, **k: self._prepare(has_latents, a, k)),
            "scheduler": view(pipe.scheduler, {"set_timesteps": set_timesteps}),
        }
        return type(pipe).__call__(view(pipe, members), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["pipe"], name)

    def _prepare(self, has_latents: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        latents = self.pipe.prepare_latents(*args, **kwargs)
        if has_latents:
            return latents
        # Flux returns the positions of its tokens as well.
        if isinstance(latents, tuple):
            return (self._corrected(latents[0]), *latents[1:])
        return self._corrected(latents)

    def _corrected(self, noise: Tensor) -> Tensor:
        shape = self.corrector.shape
        if tuple(noise.shape[1:]) == shape:
            return self.corrector(noise)
        if noise.ndim == 3 and len(shape) == 3 and math.prod(noise.shape[1:]) == math.prod(shape):
            return _packed(self.corrector(_unpacked(noise, shape)))
        raise InputError(
            f"{type(self.pipe).__name__} drew noise of shape {tuple(noise.shape[1:])}, the corrector is for {shape}: "
            "give the height and width that it was made for"
        )

    def _set_timesteps(self, has_latents: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self.pipe.scheduler.set_timesteps(*args, **kwargs)
        steps, base_steps = len(self.pipe.scheduler.timesteps), self.corrector.base_steps
        if not has_latents and base_steps is not None and steps != base_steps:
            raise InputError(
                f"the corrector was made for {base_steps} steps of the base, this call has {steps}: pass "
                f"num_inference_steps={base_steps}, or fit one for {steps}"
            )
        return result


def _unpacked(noise: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, H/2 W/2, 4 C) tokens of two by two pixels as (B, C, H, W), as Flux packs them."""
    c, h, w = shape
    tokens = noise.view(noise.shape[0], h // 2, w // 2, c, 2, 2)
    return tokens.permute(0, 3, 1, 4, 2, 5).reshape(noise.shape[0], c, h, w)


def _packed(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), 4 * c)
