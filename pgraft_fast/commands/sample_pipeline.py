"""Samples from a finished run on a pipeline, by diffusers' own pipeline and the saved adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.commands.devices import device_of
from pgraft_fast.commands.pipeline_config import PipelineConfig
from pgraft_fast.commands.pipeline_source import call_of, source_of
from pgraft_fast.errors import InputError
from pgraft_fast.files import write_file
from pgraft_fast.finetune.checkpoint import tensor_bytes
from pgraft_fast.pipelines.adapters.callback import PGraftCallback
from pgraft_fast.pipelines.adapters.loading import load_adapter, read_adapter
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.grouping import rows_by
from pgraft_fast.pipelines.media import media_of, picture_of, stacked
from pgraft_fast.report import picture_grid_png
from pgraft_fast.rewards.local_models import DTYPES
from pgraft_fast.runs.pipeline_run import ADAPTER

_AT_ONCE = 32


def sample_pipeline(
    run: Path, config: PipelineConfig, out: Path, *, n: int, seed: int, prompt: str | None, steps: int | None,
    guidance: float | None, base: bool, log: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """n samples of the prompt, or of held-out prompts in turn; the scheduler is the pipeline's own."""
    device = device_of(config.model.device)
    source = source_of(config, device, DTYPES[config.model.on(device).dtype], log)
    pipe, held_out = source.pipe, source.held_out
    if not base:
        if config.lora.rank == 0:
            raise InputError(f"{run}: all weights were tuned, there is no adapter; load model.safetensors yourself")
        load_adapter(pipe, run / ADAPTER)
    if prompt is not None and held_out.columns:
        raise InputError(
            f"--prompt {prompt!r}: prompts of {run} come with {', '.join(held_out.columns)}; leave it out to draw "
            "held-out ones"
        )
    prompts = held_out.rows([number % len(held_out.text) for number in range(n)])
    texts = list(prompts.text) if prompt is None else [prompt] * n
    scale, at_cut = _guidance(run, config, guidance, base)
    steps = config.sample.steps if steps is None else steps
    calls = Calls(pipe, texts, call_of(config, pipe), prompts.columns, guidance=scale, steps=steps)
    calls.check()
    more: dict[str, Any] = {} if at_cut is None else {"callback_on_step_end": at_cut}
    if "output_type" in calls.names:
        # Pictures and frames as they are, not rounded to bytes.
        more["output_type"] = "pt"
    media: list[np.ndarray] = [np.empty(0)] * n
    pixels: list[Tensor] = [torch.empty(0)] * n
    # Pictures of a column are the same objects.
    keys = [(text, *(id(values[row]) for values in prompts.columns.values())) for row, text in enumerate(texts)]
    for rows in rows_by(keys).values():
        for low in range(0, len(rows), _AT_ONCE):
            part = rows[low : low + _AT_ONCE]
            output = pipe(**calls.of(part[0], len(part), [seed + row for row in part], calls.steps), **more)
            for row, medium in zip(part, media_of(output), strict=True):
                media[row] = medium
            images = getattr(output, "images", None)
            if isinstance(images, Tensor):
                for row, picture in zip(part, images.float().cpu() * 2.0 - 1.0, strict=True):
                    pixels[row] = picture
    if out.suffix == ".png":
        write_file(out, picture_grid_png(np.stack([picture_of(medium) for medium in media])))
    else:
        write_file(out, tensor_bytes({"samples": torch.stack(pixels) if pixels[0].numel() else stacked(media)}))
    return {"out": str(out), "n": n, "seed": seed, "tuned": not base, "prompts": texts[: len(held_out.text)]}


def _guidance(
    run: Path, config: PipelineConfig, guidance: float | None, base: bool
) -> tuple[float | None, Callable[..., dict[str, Any]] | None]:
    """The scale that a call begins with, and what changes it at the cut."""
    below, above = config.sample.guidance, config.sample.guidance_tuned
    if guidance is not None:
        return guidance, None
    if base or above is None or below is None or above == below:
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
