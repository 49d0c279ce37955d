"""A LoRA in the form in which sampling calls it fastest.

A layer with a LoRA answers with three products and two sums, W x + s B (A x). With W + s B A in a tensor of its own it
is one product again. Where the weights have 16 bits and the sum would round the LoRA away, A and B are called in 16
bits, which spares two casts of the states. The layer's own weights are never written: what is made lies beside them and
takes their places for the length of a call.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.errors import is_out_of_memory
from pgraft_fast.pipelines.switches import runs_hooks
from pgraft_fast.sampling.card import free_memory

_LOG = logging.getLogger(__name__)
# The share of the LoRA, as a root of squares over all layers, that rounding the sums may change.
_LEAST_LOST = 0.01
# Of a GPU's free memory.
_MOST_TAKEN = 0.25


class Merged:
    """layers: of peft, in a network. name: of the LoRA; for calls `in_place` it must be on or off, as `on` says.

    What is called is made when it is first asked for, and again in its place after each change of the LoRA. Layers that
    are quantised, networks whose weights a hook brings in, and scarce memory leave all as it is: `ready` is False.
    """

    def __init__(self, net: nn.Module, layers: list[Any], name: str) -> None:
        self._name = name
        self._layers = [layer for layer in layers if name in layer.lora_A or name in layer.lora_embedding_A]
        self._fits = bool(self._layers) and all(_fits(layer, name) for layer in self._layers) and not runs_hooks(net)
        self._made_of: list[int] | None = None
        # The dictionaries of parameters that take other ones, by their keys.
        self._places: list[tuple[dict[str, Any], str, nn.Parameter]] = []
        self.on = False

    def ready(self) -> bool:
        """Make what is called, of the LoRA as it is now. False: the LoRA is called as it is."""
        if not self._fits:
            return False
        made_of = [part.weight._version for layer in self._layers for part in self._pair(layer)]
        if made_of != self._made_of:
            self._made_of = made_of
            try:
                self._make()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._leave()
        return self._fits

    @property
    def key(self) -> tuple[int, ...]:
        """Where lies what is called."""
        return tuple(weight.data_ptr() for _, _, weight in self._places)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Layers call what was made."""
        own = [held[key] for held, key, _ in self._places]
        try:
            for held, key, weight in self._places:
                held[key] = weight
            yield
        finally:
            for (held, key, _), weight in zip(self._places, own, strict=True):
                held[key] = weight

    def _leave(self) -> None:
        self._places, self._fits = [], False
        _LOG.info("memory is scarce: sampling calls the LoRA beside the weights, not added to them")

    @torch.inference_mode(False)
    @torch.no_grad()
    def _make(self) -> None:
        if self.on:
            self._copy()
            return
        if not self._places:
            bases = [layer.get_base_layer() for layer in self._layers]
            if sum(base.weight.nbytes for base in bases) > _MOST_TAKEN * free_memory(bases[0].weight.device):
                self._leave()
                return
            self._places = [(base._parameters, "weight", _like(base.weight, base.weight.dtype)) for base in bases]
        lost, whole = 0.0, 0.0
        for layer, (held, key, place) in zip(self._layers, self._places, strict=True):
            weight, change = held[key], layer.get_delta_weight(self._name)
            change = change.to(torch.promote_types(change.dtype, torch.float32))
            place.copy_(weight + change)
            if place.element_size() < change.element_size():
                lost += float((place.float() - weight.float() - change).square().sum())
                whole += float(change.square().sum())
        if lost > _LEAST_LOST**2 * whole:
            share = math.sqrt(lost / whole)
            dtype = str(self._places[0][2].dtype).removeprefix("torch.")
            _LOG.info(
                "in sums with %s weights %.0f %% of the LoRA would be lost: it stays beside them", dtype, 100 * share
            )
            self.on, self._places = True, []
            self._copy()

    def _pair(self, layer: Any) -> tuple[Any, Any]:
        """A and B."""
        return layer.lora_A[self._name], layer.lora_B[self._name]

    def _copy(self) -> None:
        if not self._places:
            self._places = [
                (part._parameters, "weight", _like(part.weight, layer.get_base_layer().weight.dtype))
                for layer in self._layers for part in self._pair(layer)
            ]  # fmt: skip
        for held, key, place in self._places:
            place.copy_(held[key])


def _fits(layer: Any, name: str) -> bool:
    """Whether the layer is one product with weights that can be added to."""
    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    return (
        isinstance(base, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and name in layer.lora_A
        and type(weight) is nn.Parameter
        and type(weight.data) is Tensor
        and weight.is_floating_point()
        and weight.element_size() > 1
        and not weight.is_meta
        and not getattr(layer, "lora_variant", {})
    )


def _like(weight: Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False)
