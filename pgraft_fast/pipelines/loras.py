"""LoRAs of a denoiser: which layers get one, and which of several is on."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import nn

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.merged import Merged
from pgraft_fast.schema import Name, Positive, Settings

# Quantised ones are subclasses.
_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SHOWN = 4
# Names of the projections of attention in the models of diffusers.
ATTENTION = (("to_q", "to_k", "to_v", "to_out.0", "to_out"), ("to_query", "to_key", "to_value", "out_layer"))


class Lora(Settings):
    """rank: 0 trains all weights. alpha: the scale is alpha / rank, default the rank. targets: ends of the names of
    layers; default the projections of attention.
    """

    rank: int = Field(default=16, ge=0, le=2**14)
    alpha: Positive | None = None
    targets: list[Name] | None = Field(default=None, min_length=1)


class Adapters:
    """The LoRAs of a network, of which one or none is on."""

    def __init__(self, net: nn.Module, trained: str) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._net = net
        self._layers: list[Any] = [layer for layer in net.modules() if isinstance(layer, BaseTunerLayer)]
        self._trained = [weight for name, weight in net.named_parameters() if f".{trained}." in name]
        self._frozen = [
            weight for layer in self._layers for name, weight in layer.named_parameters()
            if ".lora_" in f".{name}" and f".{trained}." not in f".{name}"
        ]  # fmt: skip
        self._on: str | None = "?"
        self._merged: dict[str, Merged] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adapters":
        """Of a copy of the network, which calls nothing that was made for this one."""
        copied = copy.copy(self)
        copied._net, copied._layers, copied._trained, copied._frozen = copy.deepcopy(
            (self._net, self._layers, self._trained, self._frozen), memo
        )
        copied._on, copied._merged = "?", {}
        return copied

    def sampling(self, name: str | None) -> Merged | None:
        """Turn a LoRA on in the form for sampling; None where it has none, and is on as it is."""
        if name is None:
            self.use(None)
            return None
        if name not in self._merged:
            self._merged[name] = Merged(self._net, self._layers, name)
        merged = self._merged[name]
        if not merged.ready():
            self.use(name)
            return None
        self.use(name if merged.on else None)
        return merged

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


def inject(net: Any, lora: Lora, seed: int, names: Sequence[str]) -> None:
    """LoRAs of these names, the first with random weights. Raises InputError where no layer has a target's name."""
    from peft import LoraConfig

    if getattr(net, "peft_config", None):
        raise InputError(f"{type(net).__name__} has a LoRA already ({', '.join(net.peft_config)}); unload it first")
    targets = default_targets(net) if lora.targets is None else lora.targets
    _check_targets(net, targets)
    make: Any = LoraConfig
    config = make(
        r=lora.rank, lora_alpha=lora.rank if lora.alpha is None else lora.alpha, target_modules=targets,
        init_lora_weights="gaussian",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            add_adapter(net, config, names[0])
        except (ValueError, TypeError, NotImplementedError) as error:
            text = " ".join(str(error).split())
            raise InputError(f"lora: {type(net).__name__} takes none of rank {lora.rank} there: {text}") from error
    with warnings.catch_warnings():
        # peft warns of a second LoRA, which is meant.
        warnings.simplefilter("ignore", UserWarning)
        for name in names[1:]:
            add_adapter(net, config, name)


def add_adapter(net: Any, config: Any, name: str) -> None:
    """To a model of diffusers; some have no method for it."""
    if hasattr(net, "add_adapter"):
        net.add_adapter(config, adapter_name=name)
        return
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, net, name)


def default_targets(net: nn.Module) -> list[str]:
    """The projections of attention by whatever names they have. Raises InputError where none is found."""
    modules = dict(net.named_modules())
    for known in ATTENTION:
        named = {end: [module for name, module in modules.items() if f".{name}".endswith(f".{end}")] for end in known}
        # Some models have a layer and a list of layers under one name.
        targets = [end for end, parts in named.items() if parts and all(isinstance(part, _LAYERS) for part in parts)]
        if len(targets) > 1:
            return targets
    raise InputError(f"lora.targets: {type(net).__name__} has no attention of known names; name its layers")


def _check_targets(net: nn.Module, targets: list[str]) -> None:
    """Raise InputError unless each is the end of names, and each layer of such a name has weights for a LoRA."""
    modules = dict(net.named_modules())
    for target in targets:
        named_so = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not named_so:
            raise InputError(f"lora.targets={targets}: no layer of {type(net).__name__} has the name {target!r}")
        for name in named_so:
            if isinstance(modules[name], _LAYERS):
                continue
            inside = [inner for inner, module in modules[name].named_modules() if isinstance(module, _LAYERS)]
            meant = f"; in it are {', '.join(f'{target}.{inner}' for inner in inside[:_SHOWN])}" if inside else ""
            more = f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
            raise InputError(
                f"lora.targets={targets}: {name} ({type(modules[name]).__name__}) takes no LoRA{meant}{more}"
            )
