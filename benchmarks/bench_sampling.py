"""Whole pipeline calls: diffusers as it is beside the same pipeline accelerated, with the same models.

On a CPU the models are small and run as they are, so that the work around them shows; on a GPU see `sampling_gpu`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from pgraft_fast.pipelines import accelerate
from pgraft_fast_benchmarks import sampling_goals, sampling_gpu
from pgraft_fast_benchmarks.calls import PipelineCall
from pgraft_fast_benchmarks.harness import Case, Each, Provider, Settings, run_cases
from pgraft_fast_benchmarks.models import denoiser_name, seeded, stable_diffusion, twin

GOALS = sampling_goals.GOALS
SHOWN = ("diffusers", "diffusers compile", "diffusers xformers", "ours eager")
DETAILS = {
    "images_per_s": "images/s", "non_model_ms": "rest ms", "non_model_share": "share",
    "host_ms_per_trajectory": "host ms", "launches_per_image": "launches", "peak_memory_mb": "MB",
    "energy_j_per_image": "J",
}  # fmt: skip
DETAILS_NOTE = (
    "rest: of a call, outside of its models; share: that over the models' time; host: until the call returned; "
    "launches and J: for an image."
)

_PROMPTS = ["a red cube", "two dogs", "a house by the sea", "an old map"]
_LEVEL = 1 / 255


def cases(settings: Settings) -> Iterator[Case]:
    """Those of the device. Compiled denoisers are for full runs."""
    if settings.device.type == "cuda":
        yield from sampling_gpu.cases(settings)
        return
    yield _case("digits", digits, (16, 1, 8, 8), {"batch_size": 16}, settings)
    yield _case("digits", digits, (1, 1, 8, 8), {"batch_size": 1}, settings)
    tiny = {"prompt": _PROMPTS, "guidance_scale": 7.5}
    yield _case("tiny sd", tiny_sd, (4, 4, 8, 8), tiny, settings)
    if not settings.short:
        yield _case("compiled digits", digits, (16, 1, 8, 8), {"batch_size": 16}, settings, compiled=True)
        yield _case("compiled tiny sd", tiny_sd, (4, 4, 8, 8), tiny, settings, compiled=True)


def run(settings: Settings, each: Each) -> dict[str, Any]:
    """Measure all. each: told the label and the rows of a case when it is done."""
    return run_cases(cases(settings), settings, each)


def digits() -> Any:
    """The shipped model, unconditional."""
    from pgraft_fast.tasks.digits.pipeline import digits_pipeline

    return seeded(digits_pipeline)


def tiny_sd() -> Any:
    """Stable Diffusion with a UNet of 0.8 M weights. Raises ImportError without transformers."""
    return seeded(partial(stable_diffusion, "bench"))


def _case(
    name: str, make: Callable[[], Any], shape: tuple[int, ...], arguments: dict[str, Any], settings: Settings,
    compiled: bool = False,
) -> Case:  # fmt: skip
    steps = 10 if settings.small else 50
    arguments = {**arguments, "num_inference_steps": steps}
    return Case(
        "sampling", name, shape, "float32", None, partial(_providers, make, arguments, shape[0], compiled),
        columns={"batch": shape[0], "steps": steps}, budget=settings.by_size(20.0, 3.0, 0.5),
        least=settings.by_size(20, 5, 5), optional=name.endswith("tiny sd"),
    )  # fmt: skip


def _providers(
    make: Callable[[], Any], arguments: dict[str, Any], batch: int, compiled: bool, settings: Settings
) -> Sequence[Provider]:
    pipe = make()
    if compiled:
        torch.compiler.reset()
        name = denoiser_name(pipe)
        setattr(pipe, name, torch.compile(getattr(pipe, name)))
    ways = {"diffusers": lambda: pipe, "ours": lambda: accelerate(twin(pipe))}
    calls = {
        name: PipelineCall(way, arguments, settings.device, batch, arguments["num_inference_steps"])
        for name, way in ways.items()
    }
    expected = cache(lambda: calls["diffusers"].pictures("np"))
    errors: dict[str, float] = {}

    def gate(name: str) -> str | None:
        """The first call and a later one draw what diffusers does."""
        pictures = calls[name].twice("np")
        errors[name] = float(np.abs(np.stack(pictures) - expected()).max())
        return None if errors[name] <= _LEVEL else f"pictures differ by {errors[name]:.2e}, allowed is 1/255"

    def columns(name: str) -> dict[str, Any]:
        return {**calls[name].columns(), "error": errors[name]}

    def provider(name: str) -> Provider:
        return Provider(
            name, calls[name], partial(gate, name), backend=settings.backend if name == "ours" else None,
            optional=compiled, own_clock=True, columns=partial(columns, name),
        )  # fmt: skip

    return [provider(name) for name in ways]
