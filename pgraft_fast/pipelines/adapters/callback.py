"""Handover at the cut in plain diffusers: the LoRA acts while the state is noisier than the cut."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pgraft_fast.diffusion.schedule import Schedule, check_cut
from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.denoisers import denoiser_of


class PGraftCallback:
    """`callback_on_step_end` of a diffusers pipeline: turns its LoRA off from the cut's noise level on.

        pipe.load_lora_weights("tuned")
        pipe("a red circle", callback_on_step_end=PGraftCallback(0.25))

    cut: share of the reference steps in [0, 1) that the untuned model makes, read as the log-SNR of the scheduler's own
    training schedule there, so that any scheduler and number of steps hands over at the same noise. cut_logsnr: that
    log-SNR itself, instead of cut. The first step is always the LoRA's: diffusers asks after it. The LoRA is on again
    after the last step; `reset(pipe)` turns it on after a run that was broken off. Raises InputError where the denoiser
    has no LoRA, or the noise levels of the steps are not known.
    """

    tensor_inputs = ("latents",)

    def __init__(self, cut: float | None = None, *, cut_logsnr: float | None = None) -> None:
        if (cut is None) == (cut_logsnr is None):
            raise InputError("PGraftCallback needs cut or cut_logsnr, one of them")
        self._cut = None if cut is None else check_cut(cut)
        self._logsnr = cut_logsnr
        self._held = False
        self._handover: int | None = None

    def __call__(self, pipe: Any, step: int, timestep: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:
        """After each step of the pipeline."""
        if self._held:
            return callback_kwargs
        if step == 0 or self._handover is None:
            _denoiser(pipe)
            self._handover = max(1, self.step_of(pipe) - _left_out(pipe, timestep))
        if step + 1 == self._handover:
            self.switch(pipe, False)
        if step + 1 >= _steps(pipe):
            self.reset(pipe)
        return callback_kwargs

    def reset(self, pipe: Any) -> None:
        """Turn the LoRA on."""
        self.switch(pipe, True)

    def switch(self, pipe: Any, on: bool) -> None:
        """Turn the LoRA on or off."""
        denoiser = _denoiser(pipe)
        (denoiser.enable_adapters if on else denoiser.disable_adapters)()

    def step_of(self, pipe: Any) -> int:
        """The first step that the untuned model makes, on the timesteps that are set."""
        logsnr = self._logsnr
        if logsnr is None:
            try:
                logsnr = Schedule.from_diffusers(pipe.scheduler).cut_logsnr(float(self._cut or 0.0))
            except InputError as error:
                what = str(error).partition(";")[0]
                raise InputError(f"{what}; PGraftCallback takes cut_logsnr= there instead of cut=") from None
        levels = _logsnr_of_steps(pipe.scheduler)
        return max(1, sum(level < logsnr - 1e-6 for level in levels))

    @contextmanager
    def inside(self, pipe: Any) -> Iterator[None]:
        """While somebody else hands over: the pipeline's own calls do nothing, and the LoRA is on afterwards."""
        _denoiser(pipe)
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self.reset(pipe)


def _left_out(pipe: Any, timestep: Any) -> int:
    """Steps of the scheduler before the first one that the pipeline makes: some where it starts from a picture.

    A pipeline may tell another number than the timestep: most schedulers know where they are.
    """
    place = getattr(pipe.scheduler, "step_index", None)
    if isinstance(place, int):
        return max(0, place - 1)
    timesteps = [float(t) for t in pipe.scheduler.timesteps]
    first = float(timestep)
    return timesteps.index(first) if first in timesteps else 0


def _steps(pipe: Any) -> int:
    return getattr(pipe, "_num_timesteps", None) or len(pipe.scheduler.timesteps)


def _denoiser(pipe: Any) -> Any:
    denoiser = denoiser_of(pipe)
    if not getattr(denoiser, "_hf_peft_config_loaded", False):
        raise InputError(f"{type(pipe).__name__} has no LoRA on its denoiser; load one with pipe.load_lora_weights")
    return denoiser


def _logsnr_of_steps(scheduler: Any) -> list[float]:
    """log(alpha^2 / sigma^2) of the state before each step."""
    steps = len(scheduler.timesteps)
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) < steps:
        if getattr(scheduler, "alphas_cumprod", None) is None:
            raise InputError(f"{type(scheduler).__name__} tells no noise levels: PGraftCallback cannot place the cut")
        level = scheduler.alphas_cumprod.double().cpu()[scheduler.timesteps.long().cpu()]
        return (level.log() - (1.0 - level).log()).tolist()
    sigma = sigmas[:steps].double().cpu()
    flow = type(scheduler).__name__.startswith("FlowMatch")
    if flow or scheduler.config.get("use_flow_sigmas"):
        return (2.0 * ((1.0 - sigma).log() - sigma.log())).tolist()
    return (-2.0 * sigma.log()).tolist()
