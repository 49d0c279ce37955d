"""The shipped shapes models as ordinary diffusers pipelines."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from torch import nn

from pgraft_fast.errors import CheckpointError, InputError
from pgraft_fast.files import write_file
from pgraft_fast.finetune.checkpoint import tensor_bytes, tensors_from_bytes
from pgraft_fast.tasks.shapes.models import make_sd3_parts, make_sd_parts, make_vae

WEIGHTS = Path(__file__).parent / "weights"
KINDS = ("sd", "sd3")
# Trained parts of each kind; both use the autoencoder in the folder's root.
TRAINED = {"sd": ("text_encoder", "unet"), "sd3": ("text_encoder", "text_encoder_2", "transformer")}


def shapes_pipeline(kind: str = "sd", folder: Path | None = None) -> Any:
    """A StableDiffusionPipeline ("sd") or StableDiffusion3Pipeline ("sd3") in float32 on the CPU.

    It draws 32 x 32 pictures of the prompts of this task; 20 steps and a guidance of 2 are usual. folder: made by
    `train-base`, in place of the shipped weights. "sd3" has no third text encoder, for which diffusers puts in
    `max_sequence_length` (256) zero tokens; `max_sequence_length=0` leaves them out, which is several times faster.
    Raises InputError for another kind, CheckpointError for missing or damaged weights.
    """
    parts = {**make_parts(kind), "vae": make_vae()}
    root = WEIGHTS if folder is None else folder
    load_part(parts["vae"], root / "vae.safetensors")
    for name in TRAINED[kind]:
        load_part(parts[name], root / kind / f"{name}.safetensors")
    return assemble(kind, parts)


def make_parts(kind: str) -> dict[str, Any]:
    """The untrained parts of a kind, without the autoencoder. Raises InputError."""
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: the shapes models are of the kinds {', '.join(KINDS)}")
    return make_sd_parts() if kind == "sd" else make_sd3_parts()


def assemble(kind: str, parts: dict[str, Any]) -> Any:
    """The pipeline of its parts, in eval mode and without a progress bar."""
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    pipe: Any
    if kind == "sd":
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    else:
        pipe = StableDiffusion3Pipeline(**parts, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_folder(path: Path, kind: str = "sd", folder: Path | None = None) -> None:
    """Write the usual model folder of diffusers. Raises as `shapes_pipeline`.

    `StableDiffusionPipeline.from_pretrained(path)` reads it; StableDiffusion3Pipeline wants to be told what is absent:
    `from_pretrained(path, text_encoder_3=None, tokenizer_3=None)`.
    """
    shapes_pipeline(kind, folder).save_pretrained(path)


def weights_sha256(kind: str, folder: Path | None = None) -> str:
    """One SHA-256 over the weight files of a kind. Raises InputError, CheckpointError."""
    make_parts(kind)
    root = WEIGHTS if folder is None else folder
    paths = [root / "vae.safetensors", *(root / kind / f"{name}.safetensors" for name in TRAINED[kind])]
    return hashlib.sha256(b"".join(hashlib.sha256(_bytes(path)).digest() for path in paths)).hexdigest()


def load_part(model: nn.Module, path: Path) -> None:
    """Fill a model with the float16 weights of a file, as float32. Raises CheckpointError."""
    tensors = tensors_from_bytes(_bytes(path), path)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: these weights are not of this {type(model).__name__}") from error


def save_part(model: nn.Module, path: Path) -> None:
    """Write a model's weights as float16. Raises StorageError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    write_file(path, tensor_bytes(tensors))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: weights cannot be read ({error.strerror}); make them with `pgraft-fast train-base shapes`"
        ) from error
