"""What a rank holds of a network in training, in bytes, from numbers and dtypes of its weights alone."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from pgraft_fast.ranks.sharded import blocks_of, called_in
from pgraft_fast.sizes import megabytes

_SINGLE = torch.float32.itemsize
# Weights that are put together while the block before them is still whole.
_BLOCKS_AT_ONCE = 2


@dataclass(frozen=True)
class Holding:
    """Bytes at an optimiser step, without activations. base: of weights that are never trained, the reference's.
    weights: that are trained; masters: float32 copies of them; gradients; moments: two a weight; averages: with their
    masters. together: an estimate of what is whole for a moment while a sharded network is called, see `_together`.
    """

    base: int
    weights: int
    masters: int
    gradients: int
    moments: int
    averages: int
    together: int = 0
    ranks: int = field(default=1, kw_only=True)

    @property
    def kept(self) -> int:
        """All but what is put together for a call."""
        return self.base + self.weights + self.masters + self.gradients + self.moments + self.averages

    @property
    def total(self) -> int:
        """At most, beside activations."""
        return self.kept + self.together

    def __str__(self) -> str:
        parts = ("base", "weights", "masters", "gradients", "moments", "averages", "together")
        named = ", ".join(f"{name} {megabytes(getattr(self, name))}" for name in parts if getattr(self, name))
        return f"{megabytes(self.total)} on each of {self.ranks} ranks: {named}"


def holding_full(net: nn.Module, ranks: int = 1, *, sharded: bool = False, averages: int = 1) -> Holding:
    """Of all weights in training. net: whole, also on the device "meta". averages: 2 where rounds start from them."""
    dtype = called_in(net)
    dealt, whole = _split(net, lambda weight: sharded and weight.dtype is dtype and weight.ndim > 0)
    share, own = _Sum(dealt, ranks), _Sum(whole)
    # Shares in training are float32 and their own masters; a copy for the start of a round is as the reference.
    trained, masters = share.singles + own.plain, own.masters
    base_share, base_own = _split(net, lambda weight: sharded and weight.ndim > 0)
    base = _Sum(base_share, ranks).plain + _Sum(base_own).plain
    return Holding(
        base=base * averages, weights=trained, masters=masters, gradients=share.singles + own.singles,
        moments=2 * (share.singles + own.singles), averages=trained + masters,
        together=_together(net, whole, True) if sharded else 0, ranks=ranks,
    )  # fmt: skip


def holding_lora(
    net: nn.Module, lora: Iterable[Tensor], ranks: int = 1, *, sharded: bool = False, averages: int = 1
) -> Holding:
    """Of a LoRA in training. net: without LoRAs. lora: its weights, whole on every rank, in float32."""
    dealt, whole = _split(net, lambda weight: sharded and weight.ndim > 0)
    of_lora = _Sum(lora)
    return Holding(
        base=_Sum(dealt, ranks).plain + _Sum(whole).plain, weights=of_lora.singles, masters=0,
        gradients=of_lora.singles, moments=2 * of_lora.singles, averages=of_lora.singles * averages,
        together=_together(net, whole, False) if sharded else 0, ranks=ranks,
    )  # fmt: skip


def sharding_of(choice: Literal["auto", "always", "never"], alone: Holding, free: float, ranks: int) -> bool:
    """Whether to shard: "auto" where a rank that held all would have less than half of the free bytes left."""
    return ranks > 1 and (choice == "always" or (choice == "auto" and alone.total > free / 2))


class _Sum:
    """Bytes of weights, of which each rank has a share. plain: in their dtypes. singles: in float32, or what is wider.
    masters: of those of 16 bits.
    """

    def __init__(self, weights: Iterable[Tensor], ranks: int = 1) -> None:
        self.plain = self.singles = self.masters = 0
        for weight in weights:
            count = _padded(weight, ranks)
            self.plain += count * weight.element_size()
            self.singles += count * max(_SINGLE, weight.element_size())
            self.masters += count * _SINGLE if weight.element_size() < _SINGLE else 0


def _padded(weight: Tensor, ranks: int) -> int:
    """Elements of a rank's share: rows are dealt, and as many are allocated on each rank."""
    return -(-weight.shape[0] // ranks) * math.prod(weight.shape[1:]) if ranks > 1 else weight.numel()


def _split(
    net: nn.Module, dealt: Callable[[nn.Parameter], bool]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:  # fmt: skip
    every = list(net.parameters())
    return [weight for weight in every if dealt(weight)], [weight for weight in every if not dealt(weight)]


def _together(net: nn.Module, whole: Iterable[nn.Parameter], trained: bool) -> int:
    """What is in no block, and the two largest blocks, each with the message that it comes in; in training with its
    gradient, and the message that this goes in.
    """
    kept = list(whole)
    seen, sizes = {id(weight) for weight in kept}, []
    for name in [*blocks_of(net, kept), ""]:
        block = net.get_submodule(name)
        own = [weight for weight in block.parameters() if id(weight) not in seen]
        seen.update(id(weight) for weight in own)
        size = _Sum(own)
        sizes.append(2 * size.plain + (size.plain + size.singles if trained else 0))
    return sizes[-1] + sum(sorted(sizes[:-1])[-_BLOCKS_AT_ONCE:])
