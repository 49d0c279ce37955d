"""Where the rows come from that a vector field is learned from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pgraft_fast.diffusion import Stream, normal
from pgraft_fast.finetune.identity import sha256_of_tensors


class Source(Protocol):
    """Data to learn: `len(source)` samples; rows(index, step) -> (B, ...) float32, perhaps with fresh noise a step.

    slow: the rows come from files, so those of the next step are read while this one is learned. A source may have
    identity(): JSON that names its contents; else the first thousand rows stand for all.
    """

    @property
    def slow(self) -> bool: ...

    def __len__(self) -> int: ...

    def rows(self, index: Tensor, step: int) -> Tensor: ...


@dataclass(frozen=True)
class Rows:
    """A tensor (n, ...) as a source. sigma: of the noise that is added anew to each row in each step."""

    values: Tensor
    sigma: float = 0.0
    seed: int = 0
    slow: bool = False

    def __len__(self) -> int:
        return self.values.shape[0]

    def rows(self, index: Tensor, step: int) -> Tensor:
        """See `Source`."""
        rows = self.values[index]
        if self.sigma == 0.0:
            return rows
        shape = tuple(rows.shape[1:])
        place = torch.arange(rows.shape[0], device=rows.device)
        return rows + self.sigma * normal(self.seed, place, step, shape, Stream.DATA_NOISE)

    def identity(self) -> dict[str, Any]:
        """By content."""
        return {"sha256": sha256_of_tensors({"rows": self.values}), "sigma": self.sigma, "seed": self.seed}


def contents_of(source: Source) -> Any:
    """What names a source's rows in a checkpoint, as JSON."""
    identity: Callable[[], Any] | None = getattr(source, "identity", None)
    if identity is not None:
        return identity()
    return sha256_of_tensors({"rows": source.rows(torch.arange(min(len(source), 1000)), 0)})
