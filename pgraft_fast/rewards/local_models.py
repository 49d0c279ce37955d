"""Models of `transformers` from folders on this machine: nothing is downloaded, no code of theirs is run."""

import importlib
from pathlib import Path
from typing import Any

import torch

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards.protocol import one_line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


def what_is_missing(folder: Path, tokenizer: bool = False) -> str | None:
    """What keeps a folder from being a model's, or None: no folder, config, safetensors, or tokenizer where asked."""
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / "config.json").is_file():
        return "the folder has no config.json"
    if not any(folder.glob("*.safetensors")):
        return "the folder has no *.safetensors"
    # Without these, transformers would make a tokenizer that knows no word, and not say so.
    if tokenizer and not any((folder / name).is_file() for name in _TOKENIZERS):
        return "the folder has no tokenizer.json"
    return None


def from_transformers(name: str) -> Any:
    """A class of `transformers`. Raises RewardError where the package is missing."""
    try:
        return getattr(importlib.import_module("transformers"), name)
    except ImportError as error:
        raise RewardError(
            f"{name} needs the package transformers, which is missing: pip install 'transformers>=5.3'"
        ) from error


def load_model(kind: str, folder: Path, dtype: torch.dtype) -> Any:
    """The weights in `folder` as a class of `transformers`, for inference, on the CPU.

    Raises RewardError where files are missing or damaged, or lack a tensor that the class needs.
    """
    missing = what_is_missing(folder)
    if missing is not None:
        raise RewardError(f"{folder}: {missing}")
    try:
        model, info = from_transformers(kind).from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(f"{folder}: cannot be loaded as {kind}: {one_line(error)}") from error
    absent = sorted(info["missing_keys"])
    if absent:
        raise RewardError(f"{folder}: lacks {len(absent)} tensors of {kind}, the first is {absent[0]}")
    return model.requires_grad_(False).eval()


def load_tool(kind: str, folder: Path, **options: object) -> Any:
    """A tokenizer or processor in `folder`. Raises RewardError, and ImportError where a package is missing."""
    missing = what_is_missing(folder, tokenizer=True)
    if missing is not None:
        raise RewardError(f"{folder}: {missing}")
    try:
        return from_transformers(kind).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    except (RewardError, ImportError):
        raise
    except Exception as error:
        raise RewardError(f"{folder}: cannot be loaded as {kind}: {one_line(error)}") from error
