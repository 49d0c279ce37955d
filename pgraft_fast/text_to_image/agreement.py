"""Whether runs ask and hear what the pipeline itself does: one guided call of its own is watched and compared.

The solver, its steps and their times are the run's own; what is compared is everything else that pictures depend on:
the noise level at a timestep, the denoiser's guided answer, the x_0 that follows from it, the decoded picture.
"""

import copy
import functools
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgraft_fast.diffusion import Schedule
from pgraft_fast.diffusion.parameterization import convert
from pgraft_fast.errors import InputError
from pgraft_fast.sampling import Guided
from pgraft_fast.text_to_image.denoiser import Denoiser
from pgraft_fast.text_to_image.images import Decoder
from pgraft_fast.text_to_image.kinds import Kind

# Some schedulers (PNDM's Runge-Kutta steps) have no tables of two steps.
_STEPS = (2, 5)
# Root mean squares of differences, as shares of what is compared: rounding, other orders of rows, no more.
_ALLOWED = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
# Of angles atan2(sigma, alpha); a timestep between two entries of a table is interpolated in two ways.
_LEVEL = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.03}
_CLIPPING = ("clip_sample", "thresholding")


@dataclass(frozen=True)
class Asked:
    """A call. number: of the prompt in the denoiser's table. max_length: in tokens of T5."""

    prompt: str
    number: int
    negative_prompt: str | None
    height: int
    width: int
    max_length: int


@dataclass(frozen=True)
class _Step:
    """x: as the denoiser gets it, (1, C, h, w). out: guided. levels: (alpha, sigma) at timestep t, as far as known."""

    x: Tensor
    t: float
    out: Tensor
    levels: list[tuple[float, float]]
    x_0: Tensor | None


def check_settings(pipe: Any, kind: Kind) -> None:
    """Raise InputError for what is known not to be served, before anything is computed."""
    net, name = kind.net(pipe), type(pipe).__name__
    tokens = kind.patch**2 if kind.name == "flux" else 1
    latent = int(pipe.vae.config.latent_channels)
    takes, answers = net.config.in_channels, net.config.get("out_channels")
    for what, count in (("takes", takes), ("answers with", takes if answers is None else answers)):
        if count != latent * tokens:
            raise InputError(
                f"{name}: its {type(net).__name__} {what} {count} channels, latents have {latent * tokens}: a model of "
                "other inputs, such as inpainting, cannot be fine-tuned here"
            )
    for key in _CLIPPING:
        if pipe.scheduler.config.get(key):
            raise InputError(
                f"{name}: scheduler.{key} = true cuts x_0 off in every step, which rollouts do not; set it to false in "
                "scheduler/scheduler_config.json"
            )


def check_agreement(
    pipe: Any, denoiser: Denoiser, decoder: Decoder, schedule: Schedule, parameterization: str, asked: Asked
) -> None:
    """Raise InputError, which says what differs and by how much, unless the pipeline's own call and ours agree."""
    dtype: Any = denoiser.net.dtype
    try:
        steps, latents, pictures = _own_call(pipe, denoiser, asked, _STEPS[0])
    except InputError:
        steps, latents, pictures = _own_call(pipe, denoiser, asked, _STEPS[1])
    denoiser.table.prepare(torch.tensor([asked.number]))
    found: dict[str, tuple[float, float]] = {}

    def compare(what: str, off: float, allowed: float) -> None:
        worst = found.get(what, (0.0, allowed))
        # What is not a number is far off.
        found[what] = max(worst, (math.inf if math.isnan(off) else off, allowed))

    allowed = _ALLOWED[dtype]
    for step in steps:
        t = _time(denoiser.kind, pipe, step.t)
        if step.levels:
            alpha, sigma = (float(one) for one in schedule.alpha_sigma(t))
            off = min(abs(math.atan2(sigma, alpha) - math.atan2(one[1], one[0])) for one in step.levels)
            compare("scheduler (noise level)", off, _LEVEL[dtype])
        with torch.no_grad():
            answer = denoiser(step.x, torch.tensor([t], device=step.x.device), torch.tensor([asked.number]))
        size = _rms(step.out)
        if isinstance(answer, Guided):
            # Guidance makes rounding larger, as it does the difference.
            size += answer.scale * _rms(answer.out - answer.out_null)
            answer = answer.combined()
        compare(f"{denoiser.kind.denoiser} (guided answer)", _rms(answer - step.out) / size, allowed)
        if step.x_0 is not None:
            own = convert(step.out, step.x, schedule, t, parameterization, "x_0")
            compare("scheduler (x_0 of a step)", _rms(own - step.x_0) / _rms(step.x_0), allowed)
    compare("vae (decoded picture)", _rms(decoder(latents) - pictures), allowed)
    told = [f"{what} is off by {off:.2g} (allowed {most:.2g})" for what, (off, most) in found.items() if off > most]
    if told:
        raise InputError(
            f"{type(pipe).__name__}: a run would not do as the pipeline's own call: {', '.join(told)}; a setting "
            "of these is not served here"
        )


def _own_call(pipe: Any, denoiser: Denoiser, asked: Asked, count: int) -> tuple[list[_Step], Tensor, Tensor]:
    """What the pipeline's steps were, the latents (1, C, h, w) that came out, and their picture in [-1, 1]."""
    more: dict[str, Any] = {}
    if denoiser.kind.name in ("sd3", "flux"):
        more["max_sequence_length"] = asked.max_length
    if asked.negative_prompt is not None:
        more["negative_prompt"] = asked.negative_prompt
    with _watched(pipe) as (steps, last):
        try:
            pictures = pipe(
                asked.prompt, num_inference_steps=count, guidance_scale=denoiser.guidance, height=asked.height,
                width=asked.width, generator=torch.Generator().manual_seed(0), output_type="pt", **more,
            ).images  # fmt: skip
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise InputError(
                f"{type(pipe).__name__}: the pipeline's own call fails: {type(error).__name__}: {text}"
            ) from error

    def whole(value: Tensor | None) -> Tensor | None:
        if value is not None and value.ndim == 3:
            value = pipe._unpack_latents(value, asked.height, asked.width, pipe.vae_scale_factor)
        return None if value is None else value.to(torch.float32)

    told: Any = [_Step(whole(s.x), s.t, whole(s.out), s.levels, whole(s.x_0)) for s in steps]  # type: ignore[arg-type]
    latents: Any = whole(last[0])
    return told, latents, pictures.to(torch.float32) * 2.0 - 1.0


@contextmanager
def _watched(pipe: Any) -> Iterator[tuple[list[_Step], list[Tensor]]]:
    """A copy of the scheduler in its place that notes what it is given."""
    own = pipe.scheduler
    scheduler = copy.deepcopy(own)
    step, scale = scheduler.step, getattr(scheduler, "scale_model_input", lambda sample, t: sample)
    signature = inspect.signature(step)
    steps: list[_Step] = []
    last: list[Tensor] = []
    scaled: list[Tensor] = []

    @functools.wraps(step)
    def watched_step(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        plain = given.pop("return_dict", True)
        out, t, x = (given[key] for key in ("model_output", "timestep", "sample"))
        seen = scaled[-1] if scaled else x
        levels = [*_level_of_scale(seen[:1], x[:1]), *_level_of_noise(scheduler, t, x)]
        found = step(*bound.args, **bound.kwargs)
        steps.append(_Step(seen[:1], float(t), out[:1], levels, getattr(found, "pred_original_sample", None)))
        last[:] = [found.prev_sample]
        return found if plain else (found.prev_sample,)

    def watched_scale(sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scaled.append(scale(sample, *args, **kwargs))
        return scaled[-1]

    scheduler.step = watched_step
    scheduler.scale_model_input = watched_scale
    pipe.scheduler = scheduler
    try:
        yield steps, last
    finally:
        pipe.scheduler = own


def _level_of_scale(seen: Tensor, x: Tensor) -> list[tuple[float, float]]:
    """Where states are x_0 + sigma noise, they are divided by sqrt(1 + sigma^2) for the model; else nothing."""
    alpha = _rms(seen) / _rms(x)
    return [(alpha, math.sqrt(1.0 - alpha**2))] if alpha < 0.9999 else []


def _level_of_noise(scheduler: Any, t: Any, like: Tensor) -> list[tuple[float, float]]:
    """(alpha, sigma) by which the scheduler itself mixes data and noise at a timestep; nothing where it does not."""
    probe = copy.deepcopy(scheduler)
    one = torch.ones(1, 1, device=like.device)
    time = torch.as_tensor(t, device=like.device).reshape(1)

    def mixed(data: Tensor, noise: Tensor) -> float:
        if hasattr(probe, "scale_noise"):
            return float(probe.scale_noise(data, time, noise))
        return float(probe.add_noise(data, noise, time))

    try:
        return [(mixed(one, 0.0 * one), mixed(0.0 * one, one))]
    except (AttributeError, NotImplementedError, IndexError, ValueError):
        return []


def _time(kind: Kind, pipe: Any, timestep: float) -> float:
    """The inverse of what `Kind.call` makes of t."""
    if kind.name == "flux":
        return timestep / 1000.0
    count = int(pipe.scheduler.config.get("num_train_timesteps", 1000))
    return timestep / count if kind.name == "sd3" else (timestep + 1.0) / count


def _rms(value: Tensor) -> float:
    return float(value.to(torch.float32).square().mean().sqrt())
