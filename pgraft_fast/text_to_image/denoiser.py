"""A pipeline's denoiser as model(x, t, condition), the condition being a prompt's number."""

from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.sampling import Guided
from pgraft_fast.text_to_image.kinds import Columns, Kind
from pgraft_fast.text_to_image.prompt_table import PromptTable


class Adapters:
    """The LoRAs of a network, of which one or none is on."""

    def __init__(self, net: nn.Module, trained: str) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers: list[Any] = [layer for layer in net.modules() if isinstance(layer, BaseTunerLayer)]
        self._trained = [weight for name, weight in net.named_parameters() if f".{trained}." in name]
        self._frozen = [
            weight for layer in self._layers for name, weight in layer.named_parameters()
            if ".lora_" in f".{name}" and f".{trained}." not in f".{name}"
        ]  # fmt: skip
        self._on: str | None = "?"

    def use(self, name: str | None) -> None:
        """Turn this one on, or all off."""
        if name == self._on:
            return
        for layer in self._layers:
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name)
        # peft freezes what is off and thaws what is on; which weights are trained does not change here.
        for weights, trained in ((self._trained, True), (self._frozen, False)):
            for weight in weights:
                weight.requires_grad_(trained)
        self._on = name


def named(net: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The weights of a LoRA, by their names without the LoRA's."""
    mark = f".{adapter}."
    return {name.replace(mark, "."): weight for name, weight in net.named_parameters() if mark in name}


class Denoiser(nn.Module):
    """model(x, t, condition): x (B, C, H, W) latents, t (B,) in [0, 1], condition (B,) int64 prompt numbers.

    Returns float32 of x's shape, or `Guided` where the scale is above 1: one call of the network on 2 B rows. Several
    share a network: with other LoRAs on, or other guidance.
    """

    def __init__(
        self, net: nn.Module, kind: Kind, table: PromptTable, constants: Columns, *, guidance: float = 1.0,
        adapters: Adapters | None = None, adapter: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.kind, self.table, self.guidance = net, kind, table, guidance
        self.adapters, self.adapter = adapters, adapter
        device = next(net.parameters()).device
        self._constants = {name: value.to(device) for name, value in constants.items()}
        if kind.embedded_guidance:
            self._constants["guidance"] = torch.tensor([guidance], device=device)

    @property
    def graph_key(self) -> tuple[Any, ...]:
        """What a captured graph must not be shared over. The LoRA is switched on: others share the network."""
        self._switch()
        return self.adapter, self.guidance, *self.table.graph_key

    @property
    def calls_a_sample(self) -> int:
        """See `sampling.calls_of`."""
        return 2 if self._is_guided else 1

    @property
    def unguided(self) -> float:
        """`guidance` of training. An embedded scale is an input that the network always gets."""
        return self.guidance if self.kind.embedded_guidance else 1.0

    @property
    def _is_guided(self) -> bool:
        return self.guidance > 1.0 and not self.kind.embedded_guidance

    def like(self, *, guidance: float | None = None, adapter: str | None = None) -> "Denoiser":
        """Another on the same network, by default with the same LoRA and guidance."""
        return Denoiser(
            self.net, self.kind, self.table, self._constants, adapters=self.adapters,
            adapter=self.adapter if adapter is None else adapter,
            guidance=self.guidance if guidance is None else guidance,
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor | Guided:
        if not self._is_guided:
            return self._call(x, t, condition)
        null = self.table.null.to(condition).expand_as(condition)
        both = self._call(torch.cat((x, x)), torch.cat((t, t)), torch.cat((condition, null)))
        out, out_null = both.chunk(2)
        return Guided(out, out_null, self.guidance)

    def _call(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self._switch()
        # Of weights in 8 bits the dtype says nothing: diffusers' models know what they compute in.
        dtype = getattr(self.net, "dtype", x.dtype)
        rows = {name: value.to(dtype) for name, value in self.table.rows(condition).items()}
        out = self.kind.call(self.net, x.to(dtype), t.to(torch.float32), rows, self._constants)
        return out.to(x.dtype)

    def _switch(self) -> None:
        if self.adapters is not None:
            self.adapters.use(self.adapter)
