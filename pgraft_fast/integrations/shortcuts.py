"""What a diffusers pipeline works out anew in every call, answered sooner: a millisecond of Stable Diffusion's."""

from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import nn


def shortcuts(cls: Any) -> dict[str, Any]:
    """Members for a subclass of this pipeline class."""
    found: dict[str, Any] = {"_execution_device": property(ExecutionDevice(cls).of)}
    if getattr(cls, "maybe_convert_prompt", None) is TextualInversionLoaderMixin.maybe_convert_prompt:
        found["maybe_convert_prompt"] = maybe_convert_prompt
    return found


class ExecutionDevice:
    """`_execution_device` of a pipeline, asked again where a component or the place of its weights has changed.

    The pipeline looks for offloading hooks in every module of every component. Weights that lie on an accelerator are
    not offloaded, and without an accelerator nothing is; in any other case the pipeline is asked each time.
    """

    def __init__(self, cls: Any) -> None:
        self._ask = cls._execution_device.fget
        self._seen: list[tuple[str, nn.Module, _Place]] = []
        self._answer: Any = None

    def of(self, pipe: Any) -> Any:
        """The device."""
        own = vars(pipe)
        if not self._seen or any(own.get(name) is not part or place.moved() for name, part, place in self._seen):
            self._answer = self._ask(pipe)
            parts = [(name, part) for name, part in own.items() if isinstance(part, nn.Module)]
            self._seen = [(name, part, _Place(part)) for name, part in parts]
            if not all(place.settled() for _, _, place in self._seen):
                self._seen = []
        return self._answer


class _Place:
    """Where the first weight of a module lies."""

    def __init__(self, module: nn.Module) -> None:
        self._weights: dict[str, Any] = {}
        self._name, self._at = "", None
        for one in module.modules():
            for name, weight in one._parameters.items():
                if weight is not None:
                    self._weights, self._name, self._at = one._parameters, name, weight.device
                    return

    def moved(self) -> bool:
        """Since it was asked for."""
        weight = self._weights.get(self._name)
        return weight is None or weight.device != self._at

    def settled(self) -> bool:
        """Whether nothing offloads it."""
        return self._at is not None and (self._at.type not in ("cpu", "meta") or not torch.accelerator.is_available())


def maybe_convert_prompt(pipe: Any, prompt: Any, tokenizer: Any) -> Any:
    """As the pipeline's own, which tokenizes the prompts to find textual inversions of several vectors."""
    added = getattr(tokenizer, "added_tokens_encoder", None)
    if added is None or any(f"{token}_1" in added for token in added):
        return TextualInversionLoaderMixin.maybe_convert_prompt(pipe, prompt, tokenizer)
    return prompt
