"""Pictures from a finished text-to-image run, by diffusers' own pipeline and the saved adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.commands.devices import device_of
from pgraft_fast.commands.text_config import TextConfig
from pgraft_fast.commands.text_subject import ADAPTER, pipeline_of, text_length
from pgraft_fast.errors import InputError
from pgraft_fast.files import write_file
from pgraft_fast.finetune.checkpoint import tensor_bytes
from pgraft_fast.integrations.adapters import load_adapter, read_adapter
from pgraft_fast.integrations.callback import PGraftCallback
from pgraft_fast.report import picture_grid_png
from pgraft_fast.rewards.local_models import DTYPES
from pgraft_fast.tasks.pictures import to_pictures
from pgraft_fast.text_to_image import kind_of

_AT_ONCE = 32


def sample_text(
    run: Path, config: TextConfig, out: Path, *, n: int, seed: int, prompt: str | None, steps: int | None,
    guidance: float | None, base: bool, log: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """n pictures of the prompt, or of held-out prompts in turn; the scheduler is the pipeline's own."""
    device = device_of(config.model.device)
    pipe, held_out = pipeline_of(config, device, DTYPES[config.model.dtype], log)
    if not base:
        if config.lora.rank == 0:
            raise InputError(f"{run}: all weights were tuned, there is no adapter; load model.safetensors yourself")
        load_adapter(pipe, run / ADAPTER)
    texts = [held_out.text[number % len(held_out.text)] if prompt is None else prompt for number in range(n)]
    generators = [torch.Generator().manual_seed(seed + number) for number in range(n)]
    more: dict[str, Any] = {}
    if kind_of(pipe).name in ("sd3", "flux"):
        more["max_sequence_length"] = text_length(config)
    scale, at_cut = _guidance(run, config, guidance, base)
    if at_cut is not None:
        more["callback_on_step_end"] = at_cut
    parts = []
    for low in range(0, n, _AT_ONCE):
        asked = texts[low : low + _AT_ONCE]
        if config.model.negative_prompt is not None:
            more["negative_prompt"] = [config.model.negative_prompt] * len(asked)
        found = pipe(
            asked, num_inference_steps=config.sample.steps if steps is None else steps, guidance_scale=scale,
            height=config.model.height, width=config.model.width, generator=generators[low : low + _AT_ONCE],
            output_type="pt", **more,
        ).images  # fmt: skip
        parts.append(found.float().cpu() * 2.0 - 1.0)
    pictures = torch.cat(parts)
    write_file(
        out, picture_grid_png(to_pictures(pictures)) if out.suffix == ".png" else tensor_bytes({"samples": pictures})
    )
    return {"out": str(out), "n": n, "seed": seed, "tuned": not base, "prompts": texts[: len(held_out.text)]}


def _guidance(
    run: Path, config: TextConfig, asked: float | None, base: bool
) -> tuple[float, Callable[..., dict[str, Any]] | None]:
    """The scale that a call begins with, and what changes it at the cut."""
    below, above = config.sample.guidance, config.sample.guidance_tuned
    if asked is not None:
        return asked, None
    if base or above is None or above == below:
        return below, None
    logsnr = read_adapter(run / ADAPTER)[1].cut_logsnr
    if logsnr is None:
        return above, None
    if (above > 1.0) != (below > 1.0):
        raise InputError(
            f"{run}: diffusers' pipelines do not turn guidance on or off within a call, and this run's is {above} "
            f"above the cut and {below} below it; give --guidance"
        )
    place = PGraftCallback(cut_logsnr=logsnr)

    def callback(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == place.step_of(pipe):
            pipe._guidance_scale = below
        return kwargs

    return above, callback
