"""The gradient of a batch: of its parts one after the other, and of the parts of all ranks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.ranks.turns import even_parts

Losses = Callable[[int, int], Tensor]
T = TypeVar("T")


class Trained(Protocol):
    """Weights in training: `trained` get the gradients; sharded: see `Learner`."""

    trained: list[nn.Parameter]
    sharded: bool

    def begin(self) -> None:
        """Forget the gradients."""

    def backward(self, loss: Tensor) -> None:
        """Add those of a part of the batch."""

    def most_rows(self) -> int:
        """That may be trained on at once."""


class Gradients:
    """losses(low, high), (k,) or a number: what the rows [low, high) add to the means over a batch, the loss first; it
    alone has a gradient.

    memory: rows at once. ranks: among which the rows of a batch are dealt. ordered: in parts of `memory.value` rows,
    whose gradients are added up in their order, so that no bit depends on how many ranks there are; else each rank has
    one run of rows, and the sums differ by rounding. check(): before each batch, may raise; enough(): whether to go on.
    What raises or is enough on one rank, does or is on all.
    """

    def __init__(
        self, learner: Trained, memory: BatchSize, check: Callable[[], None], enough: Callable[[], bool],
        ranks: Ranks = ALONE, ordered: bool = False,
    ) -> None:  # fmt: skip
        self._learner, self._memory, self._check, self._enough = learner, memory, check, enough
        self._ranks, self._ordered = ranks, ordered
        self.enough = False

    def of(self, total: int, losses: Losses, values: int = 1) -> Tensor:
        """(values,) sums over a batch of `total` rows; the learner has its gradients."""
        if self._ranks.size == 1:
            return self.instead(lambda: self._memory.run(partial(self._added, losses, 0, total)))
        if self._learner.sharded:
            return self._in_step(total, losses)
        return self._in_order(total, losses, values) if self._ordered else self._dealt(total, losses, values)

    def instead(self, step: Callable[[], T]) -> T:
        """A step by one rank alone, however it is made."""
        self._check()
        result = step()
        self.enough = self._enough()
        return result

    def _added(self, losses: Losses, low: int, high: int, size: int) -> Tensor:
        """(values,) of rows [low, high), `size` at once."""
        self._learner.begin()
        sums = None
        for first in range(low, high, size):
            part = losses(first, min(first + size, high)).reshape(-1)
            self._learner.backward(part[0])
            sums = part.detach() if sums is None else sums + part.detach()
        assert sums is not None
        return sums

    def _dealt(self, total: int, losses: Losses, values: int) -> Tensor:
        weights, ranks = self._learner.trained, self._ranks
        low, high = ranks.part(total)
        sums, error = self._tried(losses, low, high, values)
        counts = self._flags(error).to(sums)
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        ranks.add_up([*(w.grad for w in weights if w.grad is not None), sums, counts])
        self._agree(counts[:2].tolist(), error)
        for weight, count in zip(weights, counts[2:].tolist(), strict=True):
            if not count:
                weight.grad = None
        return sums

    def _in_step(self, total: int, losses: Losses) -> Tensor:
        """Each rank one run of rows, in as many parts as all: they make the passes of a network that they share."""
        ranks = self._ranks
        with ranks.together():
            self._check()
        size = min(self._memory.value, self._learner.most_rows())
        sums = even_gradient(self._learner, losses, ranks.bounds(total), ranks.rank, size)
        enough = torch.tensor([self._enough()]).to(sums)
        ranks.add_up([sums, enough])
        self.enough = bool(enough > 0)
        return sums

    def _in_order(self, total: int, losses: Losses, values: int) -> Tensor:
        """Turn by turn a part on each rank."""
        ranks, size, weights = self._ranks, self._memory.value, self._learner.trained
        shapes = [weight.numel() for weight in weights]
        added: list[Tensor | None] = [None] * (1 + len(weights))
        for turn in range(-(-total // (size * ranks.size))):
            low = (turn * ranks.size + ranks.rank) * size
            sums, error = self._tried(losses, low, min(low + size, total), values)
            flags = self._flags(error).to(sums)
            flat = [torch.zeros(w.numel()).to(sums) if w.grad is None else w.grad.reshape(-1).to(sums) for w in weights]
            parts = ranks.all_of(torch.cat([sums, flags, *flat]))
            self._agree(torch.stack([part[values : values + 2] for part in parts]).sum(dim=0).tolist(), error)
            for place, part in enumerate(parts):
                if (turn * ranks.size + place) * size < total:
                    sums, flags, *gradients = part.split([values, 2 + len(weights), *shapes])
                    present = [True, *(flag > 0 for flag in flags[2:].tolist())]
                    # In the weights' own precision, as autograd adds them up.
                    shaped = [g.view_as(w).to(w.dtype) for g, w in zip(gradients, weights, strict=True)]
                    for number, (is_present, value) in enumerate(zip(present, [sums, *shaped], strict=True)):
                        before = added[number]
                        if is_present:
                            added[number] = value.clone() if before is None else before + value
        for weight, gradient in zip(weights, added[1:], strict=True):
            weight.grad = gradient
        assert added[0] is not None
        return added[0]

    def _tried(self, losses: Losses, low: int, high: int, values: int) -> tuple[Tensor, Exception | None]:
        """Sums of these rows, and what was raised; no rows and an error add nothing."""
        weights = self._learner.trained
        try:
            self._check()
            self._ranks.check()
            if low < high:
                return self._memory.run(partial(self._added, losses, low, high)), None
            error = None
        except Exception as caught:
            error = caught
        self._learner.begin()
        return torch.zeros(values, device=weights[0].device), error

    def _flags(self, error: Exception | None) -> Tensor:
        """Of this rank: whether it has met an error, whether it has enough, and which weights have gradients."""
        return torch.tensor([error is not None, self._enough(), *(w.grad is not None for w in self._learner.trained)])

    def _agree(self, counts: list[float], error: Exception | None) -> None:
        """counts: how many ranks have met an error, and how many have enough."""
        if counts[0]:
            self._ranks.agree(error)
        self.enough = counts[1] > 0


def even_gradient(learner: Trained, losses: Losses, bounds: Sequence[tuple[int, int]], rank: int, size: int) -> Tensor:
    """This rank's share of the sums over a batch, (k,), whose gradient the learner has then, `size` rows at once.

    bounds: [low, high) of the rows of each rank. losses(low, high): (k,) or a number, what rows add to the means over
    the batch, the loss first. All ranks make equally many forward and backward passes, see `even_parts`.
    """
    learner.begin()
    sums = None
    for low, high, counts in even_parts(bounds, rank, size):
        part = losses(low, high).reshape(-1) * float(counts)
        learner.backward(part[0])
        sums = part.detach() if sums is None else sums + part.detach()
    assert sums is not None
    return sums
