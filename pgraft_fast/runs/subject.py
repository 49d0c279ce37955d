"""What a run is about: its task, its reward, what is trained, and how the result is saved."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from pgraft_fast.files import write_file
from pgraft_fast.finetune import Learner, Trainer
from pgraft_fast.finetune.checkpoint import tensor_bytes
from pgraft_fast.ranks.turns import WHOLE, Turns
from pgraft_fast.tasks import Task

MODEL = "model.safetensors"


class Decoder(Protocol):
    """together: whether samples may be decoded together. at_once: how many are."""

    together: bool
    at_once: int

    def media(self, states: Tensor) -> object:
        """Of final states."""


@dataclass(frozen=True)
class Subject:
    """config: with nothing left open. learner: None for all weights of a copy. save(trainer, run): the result, its
    path. identity(): what the task and the reward are, by content; a moment's work for a large model. close(): of the
    reward. decoder: of samples, where it is left open how many at once. checkpoint(on): of activations, where the model
    can. turns(): of its networks, which ranks share; called by all of them; None where each has its own.
    held(ranks, sharded): bytes on each rank, where the networks can be sharded.
    """

    config: Any
    task: Task
    reward: Callable[..., object]
    save: Callable[[Trainer, Path], Path]
    learner: Learner | None = None
    identity: Callable[[], dict[str, Any]] = dict
    close: Callable[[], None] = lambda: None
    decoder: Decoder | None = None
    checkpoint: Callable[[bool], None] | None = None
    turns: Callable[[], Turns] | None = None
    held: Callable[[int, bool], Any] | None = None


def handover_of(task: Task, cut: float) -> dict[str, Any]:
    """What must be known to hand over at the cut again."""
    cut_logsnr = task.schedule.cut_logsnr(cut)
    return {
        "cut": cut,
        "cut_logsnr": cut_logsnr if math.isfinite(cut_logsnr) else None,
        "schedule": task.schedule.to_dict(),
        "parameterization": task.parameterization,
    }


def save_weights(model: nn.Module, run: Path, metadata: dict[str, Any]) -> Path:
    """All weights of a model into the run's folder; of one that is sharded within `whole_states`."""
    write_file(run / MODEL, tensor_bytes(getattr(model, WHOLE, None) or model.state_dict(), json.dumps(metadata)))
    return run / MODEL
