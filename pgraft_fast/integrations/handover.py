"""One adapter of a diffusers pipeline that acts above the cut only, in every call of the pipeline."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from pgraft_fast.errors import InputError
from pgraft_fast.integrations.callback import PGraftCallback
from pgraft_fast.integrations.families import denoiser_of
from pgraft_fast.integrations.fingerprint import uncompiled

HELD = "_pgraft_adapter"
CALLBACK = "callback_on_step_end"
_BELOW = "_pgraft_class"


class Switches:
    """Which adapters of a denoiser are active, layer by layer, to be put back."""

    def __init__(self, denoiser: Any) -> None:
        self.found = [(one, list(one.active_adapters), one.disable_adapters) for one in _layers(denoiser)]

    def act(self, name: str) -> bool:
        """Whether this one is switched on. Raises InputError where no switch can turn it off."""
        if any(name in layer.merged_adapters for layer, _, _ in self.found):
            raise InputError(
                f"the LoRA {name!r} is fused into the weights and cannot be handed over: unfuse_lora first"
            )
        return any(name in active and not disabled for _, active, disabled in self.found)

    def put_back(self) -> None:
        """All as it was."""
        for layer, active, disabled in self.found:
            if list(layer.active_adapters) != active:
                layer.set_adapter(active)
            if layer.disable_adapters != disabled:
                layer.enable_adapters(not disabled)

    def without(self, name: str) -> None:
        """All but this one."""
        for layer, active, _ in self.found:
            layer.set_adapter([one for one in active if one != name])


class Handover(PGraftCallback):
    """A PGraftCallback for one adapter; the others stay as they are."""

    def __init__(self, name: str, cut_logsnr: float, switches: Switches) -> None:
        super().__init__(cut_logsnr=cut_logsnr)
        self._name, self._switches = name, switches

    def switch(self, pipe: Any, on: bool) -> None:
        self._switches.put_back() if on else self._switches.without(self._name)


@dataclass
class Held:
    """The adapter of one pipeline."""

    name: str
    cut_logsnr: float | None
    denoiser: Any
    before: Switches
    trained: list[Any]
    busy: bool = False

    def activate(self, weight: float) -> None:
        """Besides those that were active before; in no layer where the weight is 0."""
        others = {id(layer): [] if disabled else active for layer, active, disabled in self.before.found}
        first = next(iter(others.values()), [])
        for layer in _layers(self.denoiser):
            layer.set_scale(self.name, weight)
            layer.set_adapter([*others.get(id(layer), first), *([self.name] if weight else [])])
            layer.enable_adapters(True)

    def remove(self) -> None:
        """From the denoiser; other adapters stay."""
        configs = getattr(self.denoiser, "peft_config", {})
        if self.name in configs:
            for layer in _layers(self.denoiser):
                if self.name in layer.merged_adapters:
                    layer.unmerge()
            self.before.put_back()
            if set(configs) == {self.name}:
                self.denoiser.unload_lora()
                vars(self.denoiser).pop("_hf_peft_config_loaded", None)
            else:
                self.denoiser.delete_adapters(self.name)
        for one in self.trained:
            one.requires_grad_(True)


def _layers(denoiser: Any) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [one for one in denoiser.modules() if isinstance(one, BaseTunerLayer)]


def handing_over(cls: Any) -> type:
    """A subclass whose calls hand over, under the name of the class itself."""

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return _call(self, function, args, kwargs)

        return call

    def init_subclass(sub: Any, **options: Any) -> None:
        # `accelerate` calls through a subclass, and has to see the handover among the arguments.
        super(ours, sub).__init_subclass__(**options)
        if "__call__" in vars(sub):
            sub.__call__ = wrapped(sub.__call__)

    told = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__qualname__": cls.__qualname__, _BELOW: cls}
    members = {"__call__": wrapped(cls.__call__), "__init_subclass__": init_subclass, **told}
    ours: Any = type(cls.__name__, (cls,), members)
    return ours


def without_handover(cls: Any) -> Any:
    """The class that `handing_over` was given; any other as it is."""
    return vars(cls).get(_BELOW, cls)


def _call(pipe: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    held = vars(pipe).get(HELD)
    # A call within a call is the accelerated pipeline's, to the class below.
    if held is None or held.busy or held.cut_logsnr is None or uncompiled(denoiser_of(pipe)) is not held.denoiser:
        return function(pipe, *args, **kwargs)
    switches = Switches(held.denoiser)
    if not switches.act(held.name):
        return function(pipe, *args, **kwargs)
    bound = _signature(function).bind(pipe, *args, **kwargs)
    own = bound.arguments.get(CALLBACK)
    if not isinstance(own, PGraftCallback):
        handover = Handover(held.name, held.cut_logsnr, switches)
        bound.arguments[CALLBACK] = handover if own is None else _both(handover, own)
        # Diffusers asks its own kind of callbacks for this; the two together are none.
        if (inputs := getattr(own, "tensor_inputs", None)) is not None:
            bound.arguments[f"{CALLBACK}_tensor_inputs"] = inputs
    held.busy = True
    try:
        return function(*bound.args, **bound.kwargs)
    finally:
        held.busy = False
        switches.put_back()


def _both(first: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    def callback(pipe: Any, step: int, timestep: Any, callback_kwargs: dict[str, Any]) -> Any:
        return then(pipe, step, timestep, first(pipe, step, timestep, callback_kwargs))

    return callback


@functools.lru_cache(maxsize=64)
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)
