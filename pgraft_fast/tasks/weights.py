"""Models of a task whose weights are a file: what each is, and how it is read."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import CheckpointError
from pgraft_fast.finetune.checkpoint import tensors_from_bytes

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class Variant:
    """A model's noise law and what it predicts."""

    schedule: Schedule
    parameterization: str


def load_weights(model: ModelT, path: Path) -> tuple[ModelT, str]:
    """The model with the weights of a file, in eval mode, and the file's SHA-256. Raises CheckpointError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: weights cannot be read ({error.strerror}); make them with train-base"
        ) from error
    try:
        model.load_state_dict(tensors_from_bytes(data, path))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: these weights are not of a {type(model).__name__}") from error
    return model.requires_grad_(False).eval(), hashlib.sha256(data).hexdigest()
