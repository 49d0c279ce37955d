"""What a diffusers pipeline works out anew in every call, answered sooner: milliseconds of Stable Diffusion's."""

import functools
import weakref
from typing import Any

import torch
from torch import nn


def shortcuts(pipe: Any) -> dict[str, Any]:
    """Members for a view of the pipeline; none for what is not diffusers' own there."""
    from diffusers import DiffusionPipeline
    from diffusers.loaders import TextualInversionLoaderMixin

    members: dict[str, Any] = {}
    cls, own = type(pipe), vars(pipe)
    if getattr(cls, "_execution_device", None) is DiffusionPipeline._execution_device:
        device = _DEVICES.get(pipe)
        if device is None:
            device = _DEVICES[pipe] = ExecutionDevice()
        answer = device.of(pipe)
        if answer is not None:
            members["_execution_device"] = answer
    convert = TextualInversionLoaderMixin.maybe_convert_prompt
    if getattr(cls, "maybe_convert_prompt", None) is convert and "maybe_convert_prompt" not in own:
        members["maybe_convert_prompt"] = functools.partial(maybe_convert_prompt, pipe)
    return members


class ExecutionDevice:
    """`_execution_device` of one pipeline, asked again where a component or the place of its weights has changed.

    The pipeline looks for offloading hooks in every module of every component. Weights that lie on an accelerator are
    not offloaded, and without an accelerator nothing is; in any other case the answer is None: the pipeline's own.
    """

    def __init__(self) -> None:
        # One tuple, so that threads see a device with what it was asked for.
        self._seen: tuple[list[tuple[str, weakref.ref[nn.Module], _Place]], Any] = ([], None)

    def of(self, pipe: Any) -> Any:
        """The device, or None."""
        own = vars(pipe)
        parts, answer = self._seen
        if not parts or any(own.get(name) is not part() or place.moved() for name, part, place in parts):
            modules = [(name, part) for name, part in own.items() if isinstance(part, nn.Module)]
            # A component that the user drops is not held here.
            parts = [(name, weakref.ref(part), _Place(part)) for name, part in modules]
            if not all(place.settled() for _, _, place in parts):
                return None
            try:
                answer = pipe._execution_device
            except Exception:
                # Of components that do not tell theirs; a pipeline that asks sees the error.
                return None
            self._seen = parts, answer
        return answer


_DEVICES: weakref.WeakKeyDictionary[Any, ExecutionDevice] = weakref.WeakKeyDictionary()


class _Place:
    """Where the first weight of a module lies."""

    def __init__(self, module: nn.Module) -> None:
        self._layer, self._name, self._at = weakref.ref(module), "", None
        for layer in module.modules():
            for name, weight in layer._parameters.items():
                if weight is not None:
                    self._layer, self._name, self._at = weakref.ref(layer), name, weight.device
                    return

    def moved(self) -> bool:
        """Since it was asked for."""
        layer = self._layer()
        weight = None if layer is None else layer._parameters.get(self._name)
        return weight is None or weight.device != self._at

    def settled(self) -> bool:
        """Whether nothing offloads it."""
        return self._at is not None and (self._at.type not in ("cpu", "meta") or not torch.accelerator.is_available())


def maybe_convert_prompt(pipe: Any, prompt: Any, tokenizer: Any) -> Any:
    """As the pipeline's own, which tokenizes the prompts to find textual inversions of several vectors."""
    from diffusers.loaders import TextualInversionLoaderMixin

    added = getattr(tokenizer, "added_tokens_encoder", None)
    if added is None or any(f"{token}_1" in added for token in added):
        return TextualInversionLoaderMixin.maybe_convert_prompt(pipe, prompt, tokenizer)
    return prompt
