"""Weights of 16 bits in training.

A weight of 16 bits has steps of 2^-8 of itself (bfloat16), so that an optimiser step of 1e-5 is rounded away: most such
weights would never move.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pgraft_fast.finetune.optimizing import tell_written


class Masters:
    """float32 copies of those of some named weights that have 16 bits; the others are their own.

    by_name: what is trained or averaged; `write` rounds the weights from them.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self.by_name = {name: _master(weight) for name, weight in weights.items()}
        self._pairs = {
            name: (weight, self.by_name[name]) for name, weight in weights.items() if weight is not self.by_name[name]
        }

    def forget_gradients(self) -> None:
        """Of the weights."""
        for weight, _ in self._pairs.values():
            weight.grad = None

    def take_gradients(self) -> None:
        """From the weights, which have none then."""
        for weight, master in self._pairs.values():
            master.grad = None if weight.grad is None else weight.grad.to(torch.float32)
            weight.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """Round into the weights."""
        if self._pairs:
            weights, masters = zip(*self._pairs.values(), strict=True)
            torch._foreach_copy_(list(weights), list(masters))
            tell_written(weights)

    def written(self) -> list[nn.Parameter]:
        """Masters and weights."""
        return [*self.by_name.values(), *(weight for weight, _ in self._pairs.values())]

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Masters from saved ones, and the weights."""
        for name, (_, master) in self._pairs.items():
            master.copy_(saved[name])
        self.write()


def _master(weight: nn.Parameter) -> nn.Parameter:
    if not weight.is_floating_point() or weight.element_size() >= torch.float32.itemsize:
        return weight
    return nn.Parameter(weight.detach().to(torch.float32), weight.requires_grad)
