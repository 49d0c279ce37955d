"""A pipeline from a local folder."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.errors import InputError, in_a_line, is_out_of_memory
from pgraft_fast.files import json_of
from pgraft_fast.pipelines.variants import check_components, load_part, variants_of


def load_pipeline(
    folder: Path, dtype: torch.dtype, device: torch.device, repository: str | None = None,
    variant: str | None = None, log: Callable[[str], None] = lambda text: None,
) -> Any:  # fmt: skip
    """A pipeline of diffusers, its weights in `dtype` on `device`, frozen, in eval mode.

    repository: on the Hugging Face Hub, named where the folder is missing. Nothing is downloaded. variant: of the
    weight files, see `variants_of`; log is told which are read where none was asked for. Raises InputError.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        where = "a model folder of diffusers" if repository is None else repository
        raise InputError(f"{folder}: no model_index.json; download {where} into it and name it in model.folder")
    try:
        entries = dict(json_of(index.read_bytes()))
        name = entries["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: damaged ({type(error).__name__})") from error
    try:
        import diffusers
    except ImportError as error:
        raise InputError(f"pipelines need diffusers ({error}): pip install 'pgraft-fast[text]'") from error
    kind = getattr(diffusers, str(name), None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        raise InputError(f"{folder}: {name} is no pipeline of diffusers {diffusers.__version__}")
    check_components(index, entries)
    # What was saved without a part wants to be told so.
    kwargs: dict[str, Any] = {part: None for part, value in entries.items() if value in ([None, None], None)}
    if "safety_checker" in entries:
        kwargs |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    variants = variants_of(folder, {part: value for part, value in entries.items() if part not in kwargs}, variant)
    if variants and variant is None:
        read = ", ".join(f"{part} {value}" for part, value in sorted(variants.items()))
        log(f"{folder}: no plain weights of some parts, variants are read: {read}")
    shown = diffusers.utils.logging.is_progress_bar_enabled()
    diffusers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Of the argument's name, which versions of diffusers do not agree on.
            warnings.simplefilter("ignore", FutureWarning)
            kwargs |= {part: load_part(folder / part, entries[part], value, dtype) for part, value in variants.items()}
            pipe: Any = kind.from_pretrained(
                str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True, **kwargs
            )
    except InputError:
        raise
    except Exception as error:
        # What a file that anybody wrote raises is not listed anywhere.
        if is_out_of_memory(error):
            raise
        text = in_a_line(f"{type(error).__name__}: {error}")[:300]
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
