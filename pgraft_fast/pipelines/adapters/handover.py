"""One adapter of a diffusers pipeline that acts above the cut only, in every call of the pipeline."""

import functools
import inspect
import itertools
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.adapters.callback import PGraftCallback
from pgraft_fast.pipelines.adapters.fingerprint import uncompiled
from pgraft_fast.pipelines.adapters.moved_cut import moved_by_size
from pgraft_fast.pipelines.around import watch
from pgraft_fast.pipelines.denoisers import denoiser_of
from pgraft_fast.pipelines.views import like, target_of, view

HELD = "_pgraft_adapter"
CALLBACK = "callback_on_step_end"
_LOCKS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


class Switches:
    """Which adapters of a denoiser are active, layer by layer, to be put back."""

    def __init__(self, denoiser: Any) -> None:
        self.states = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in _layers(denoiser)]

    def act(self, name: str) -> bool:
        """Whether this one is switched on. Raises InputError where no switch can turn it off."""
        if any(name in layer.merged_adapters for layer, _, _ in self.states):
            raise InputError(
                f"the LoRA {name!r} is fused into the weights and cannot be handed over: unfuse_lora first"
            )
        return any(name in active and not disabled for _, active, disabled in self.states)

    def put_back(self) -> None:
        """All as it was."""
        for layer, active, disabled in self.states:
            if list(layer.active_adapters) != active:
                layer.set_adapter(active)
            if layer.disable_adapters != disabled:
                layer.enable_adapters(not disabled)

    def without(self, name: str) -> None:
        """All but this one."""
        for layer, active, _ in self.states:
            layer.set_adapter([other for other in active if other != name])


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

    pipe_class: type
    name: str
    cut_logsnr: float | None
    denoiser: Any
    before: Switches
    trained: list[Any]
    sample_shape: tuple[int, ...] | None = None
    messages: set[str] = field(default_factory=set)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copied or pickled pipeline hands over, too."""
        vars(self).update({"sample_shape": None, "messages": set()} | state)
        watch(self.pipe_class, around, outside=True)

    def tell_of_size(self, pipe: Any, arguments: dict[str, Any]) -> None:
        """Warn once of each size at which the cut means something else."""
        if self.sample_shape is None or self.cut_logsnr is None:
            return
        message = moved_by_size(pipe, arguments, self.sample_shape, self.cut_logsnr)
        if message is not None and message not in self.messages:
            self.messages.add(message)
            warnings.warn(message, stacklevel=2)

    def activate(self, weight: float) -> None:
        """Besides those that were active before; in no layer where the weight is 0."""
        others = {id(layer): [] if disabled else active for layer, active, disabled in self.before.states}
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
                remove_adapters(self.denoiser)
            else:
                for layer in _layers(self.denoiser):
                    layer.delete_adapter(self.name)
                configs.pop(self.name)
        for parameter in self.trained:
            parameter.requires_grad_(True)


def remove_adapters(denoiser: Any) -> None:
    """All of them, from any model of diffusers."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(denoiser)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        vars(denoiser).pop(name, None)


def _layers(denoiser: Any) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in denoiser.modules() if isinstance(layer, BaseTunerLayer)]


def around(pipe: Any, call: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """For `calls.watch`: calls of a pipeline that holds an adapter hand over."""
    held = vars(target_of(pipe)).get(HELD)
    if held is None or held.cut_logsnr is None or uncompiled(denoiser_of(pipe)) is not held.denoiser:
        return call
    return functools.partial(_call, held, held.cut_logsnr, call, original)


def _call(
    held: Held, cut_logsnr: float, call: Callable[..., Any], original: Callable[..., Any], pipe: Any,
    *args: Any, **kwargs: Any,
) -> Any:  # fmt: skip
    # The switches are the denoiser's: of threads that share it, one at a time hands over.
    with _lock_of(held.denoiser):
        switches = Switches(held.denoiser)
        if not switches.act(held.name):
            return call(pipe, *args, **kwargs)
        if CALLBACK not in _signature(original).parameters:
            try:
                return original(_calling_back(pipe, Handover(held.name, cut_logsnr, switches)), *args, **kwargs)
            finally:
                switches.put_back()
        bound = _signature(original).bind(pipe, *args, **kwargs)
        own = bound.arguments.get(CALLBACK)
        if not isinstance(own, PGraftCallback):
            held.tell_of_size(pipe, bound.arguments)
            handover = Handover(held.name, cut_logsnr, switches)
            bound.arguments[CALLBACK] = handover if own is None else _both(handover, own)
            # Diffusers asks its own kind of callbacks for this; the two together are none.
            if (inputs := getattr(own, "tensor_inputs", None)) is not None:
                bound.arguments[f"{CALLBACK}_tensor_inputs"] = inputs
        try:
            return call(*bound.args, **bound.kwargs)
        finally:
            switches.put_back()


def _calling_back(pipe: Any, handover: Handover) -> Any:
    """A view of a pipeline that calls nothing after its steps: its scheduler does."""
    scheduler, done = pipe.scheduler, itertools.count()

    def step(*args: Any, **kwargs: Any) -> Any:
        output = scheduler.step(*args, **kwargs)
        handover(target_of(pipe), next(done), args[1] if len(args) > 1 else kwargs["timestep"], {})
        return output

    return view(pipe, {"scheduler": view(scheduler, {"step": like(scheduler.step, step)})})


def _lock_of(denoiser: Any) -> threading.RLock:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(denoiser, threading.RLock())


def _both(first: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    def callback(pipe: Any, step: int, timestep: Any, callback_kwargs: dict[str, Any]) -> Any:
        return then(pipe, step, timestep, first(pipe, step, timestep, callback_kwargs))

    return callback


@functools.lru_cache(maxsize=64)
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)
