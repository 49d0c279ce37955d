"""An evaluation on disk: what was drawn, the identity of the run that drew it, and a hash of both."""

from pathlib import Path

import torch
from torch import Tensor

from pgraft_fast.errors import CheckpointError, told_as_damage
from pgraft_fast.files import write_file
from pgraft_fast.finetune.checkpoint import tensor_bytes, tensors_from_bytes
from pgraft_fast.finetune.identity import sha256_of_tensors
from pgraft_fast.tasks.evaluation import Evaluation

_PARTS = ("samples", "rewards", "condition")
_DRAWN_AS, _HASH = "drawn_as", "sha256"


def write_evaluation(path: Path, evaluation: Evaluation, drawn_as: str) -> None:
    """drawn_as: hex digest of the run's identity. Raises StorageError."""
    drawn = {part: getattr(evaluation, part) for part in _PARTS if getattr(evaluation, part) is not None}
    tensors = {**drawn, _DRAWN_AS: _digest(drawn_as)}
    path.parent.mkdir(exist_ok=True)
    write_file(path, tensor_bytes({**tensors, _HASH: _digest(sha256_of_tensors(tensors))}))


def read_evaluation(path: Path) -> tuple[Evaluation, str]:
    """Inverse of `write_evaluation`. Raises CheckpointError for a file that is not as it was written, OSError."""
    tensors = tensors_from_bytes(path.read_bytes(), path)
    digest = tensors.pop(_HASH, torch.empty(0, dtype=torch.uint8))
    if not torch.equal(digest, _digest(sha256_of_tensors(tensors))):
        raise CheckpointError(f"{path}: damaged, or of another version (its contents do not match their hash)")
    with told_as_damage(path):
        evaluation = Evaluation(tensors["samples"], tensors["rewards"], tensors.get("condition"))
        return evaluation, bytes(tensors[_DRAWN_AS].tolist()).hex()


def _digest(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
