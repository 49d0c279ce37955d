"""A pipeline from a local folder."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.errors import InputError
from pgraft_fast.text_to_image.kinds import KINDS
from pgraft_fast.text_to_image.variants import load_part, variants_of


def load_pipeline(
    folder: Path, dtype: torch.dtype, device: torch.device, repository: str | None = None,
    variant: str | None = None, log: Callable[[str], None] = lambda text: None,
) -> Any:  # fmt: skip
    """A text-to-image pipeline of diffusers, its weights in `dtype` on `device`, frozen, in eval mode.

    repository: on the Hugging Face Hub, named where the folder is missing. Nothing is downloaded. variant: of the
    weight files, see `variants_of`; log is told which are read where none was asked for. Raises InputError.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        where = "a model folder of diffusers" if repository is None else repository
        raise InputError(f"{folder}: no model_index.json; download {where} into it and name it in model.folder")
    try:
        told = json.loads(index.read_bytes())
        name = told["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: damaged ({type(error).__name__})") from error
    if name not in KINDS:
        raise InputError(f"{folder}: {name} cannot be fine-tuned here; known: {', '.join(KINDS)}")
    try:
        import diffusers
    except ImportError as error:
        raise InputError(f"text to image needs diffusers ({error}): pip install 'pgraft-fast[text]'") from error
    given: dict[str, Any] = {}
    if name == "StableDiffusionPipeline":
        given = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if name == "StableDiffusion3Pipeline":
        # Saved without T5, or without what no text-to-image call needs.
        optional = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")
        given = {part: None for part in optional if not (told.get(part) or [None])[0]}
    variants = variants_of(folder, {part: value for part, value in told.items() if part not in given}, variant)
    if variants and variant is None:
        read = ", ".join(f"{part} {one}" for part, one in sorted(variants.items()))
        log(f"{folder}: no plain weights of some parts, variants are read: {read}")
    shown = diffusers.utils.logging.is_progress_bar_enabled()
    diffusers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Of the argument's name, which versions of diffusers do not agree on.
            warnings.simplefilter("ignore", FutureWarning)
            given |= {part: load_part(folder / part, told[part], one, dtype) for part, one in variants.items()}
            pipe: Any = getattr(diffusers, name).from_pretrained(
                str(folder), torch_dtype=dtype, local_files_only=True, **given
            )
    except (OSError, ValueError, ImportError) as error:
        text = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}: cannot be loaded as {name} ({text})") from error
    finally:
        if shown:
            diffusers.utils.logging.enable_progress_bar()
    return frozen(pipe, device)


def frozen(pipe: Any, device: torch.device) -> Any:
    """The pipeline on a device, in eval mode, without gradients and progress bar."""
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return pipe
