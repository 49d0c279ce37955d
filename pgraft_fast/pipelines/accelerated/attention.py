"""The attention backend of a denoiser: torch's SDPA, or xformers' memory-efficient attention."""

import copy
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pgraft_fast.errors import InputError
from pgraft_fast.sampling.choice import choose, model_name

KINDS = ("keep", "sdpa", "xformers", "auto")


# Those of which xformers has the same: diffusers would put softmax attention in the place of any other.
_CONVERTED = (
    "AttnProcessor",
    "AttnProcessor2_0",
    "JointAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
    "XFormersJointAttnProcessor",
)


class Attention:
    """Sets and unsets the backend of one denoiser. Raises InputError for an unknown or missing one."""

    def __init__(self, denoiser: Any, kind: str) -> None:
        check_kind(kind)
        self._denoiser = denoiser
        modules: Iterable[Any] = denoiser.modules() if isinstance(denoiser, torch.nn.Module) else ()
        layers = [module for module in modules if hasattr(module, "set_processor") and hasattr(module, "processor")]
        self._before = [(layer, layer.processor) for layer in layers]
        self._backends = [getattr(processor, "_attention_backend", None) for _, processor in self._before]
        self.open = False
        if kind == "auto":
            available = torch.cuda.is_available() and importlib.util.find_spec("xformers") is not None
            self.open = available and self._foreign() is None
        elif kind != "keep":
            self.use(kind)

    def use(self, kind: str) -> None:
        """Switch to "sdpa" or "xformers". Raises InputError for layers that xformers has no counterpart of."""
        if self._dispatches():
            with _default_backend_kept():
                self._denoiser.set_attention_backend("native" if kind == "sdpa" else "xformers")
        elif kind == "xformers":
            if (foreign := self._foreign()) is not None:
                raise InputError(f"attention='xformers': {type(self._denoiser).__name__} {foreign}")
            self._denoiser.enable_xformers_memory_efficient_attention()
        else:
            self.undo()
            if any(type(processor).__name__.startswith("XFormers") for _, processor in self._before):
                self._denoiser.disable_xformers_memory_efficient_attention()

    def _dispatches(self) -> bool:
        """Whether the processors ask diffusers' dispatcher for the backend."""
        return any(hasattr(processor, "_attention_backend") for _, processor in self._before)

    def _foreign(self) -> str | None:
        """What keeps xformers out, if anything does."""
        if not self._before:
            return "has no attention layers of diffusers"
        names = {type(processor).__name__ for _, processor in self._before}
        others = sorted(names.difference(_CONVERTED))
        return f"has {', '.join(others)}" if others and not self._dispatches() else None

    def settle(self, bound: inspect.BoundArguments, call: Callable[..., Any]) -> None:
        """For "auto": time the first call, `call` with arguments `bound`, with both, once for a device and model."""
        if not self.open:
            return
        self.open = False
        device = next(self._denoiser.parameters()).device
        short = copy.copy(bound)
        quick: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
        quick |= dict.fromkeys(("generator", "callback", "callback_on_step_end"))
        short.arguments = bound.arguments | {name: quick[name] for name in quick if name in bound.arguments}
        if "kwargs" in bound.arguments:
            short.arguments["kwargs"] = {k: v for k, v in bound.arguments["kwargs"].items() if k not in quick}
        fork = [device] if device.type == "cuda" else []

        def way(kind: str) -> Any:
            def run() -> None:
                self.use(kind)
                with torch.random.fork_rng(devices=fork):
                    call(*short.args, **short.kwargs)

            return run

        what = f"attention on {model_name(self._denoiser, device)}"
        self.use(choose(what, {kind: way(kind) for kind in ("sdpa", "xformers")}, device))

    def undo(self) -> None:
        """The processors from before."""
        for (layer, processor), backend in zip(self._before, self._backends, strict=True):
            if layer.processor is not processor:
                layer.set_processor(processor)
            if getattr(processor, "_attention_backend", backend) is not backend:
                processor._attention_backend = backend


def check_kind(kind: str) -> None:
    """Raises InputError for an attention backend that is unknown or not installed."""
    if kind not in KINDS:
        raise InputError(f"attention={kind!r} is unknown; known: {', '.join(KINDS)}")
    if kind == "xformers" and importlib.util.find_spec("xformers") is None:
        raise InputError("attention='xformers' needs xformers: pip install 'pgraft-fast[xformers]'")


@contextmanager
def _default_backend_kept() -> Iterator[None]:
    """diffusers makes a model's backend that of every model without one of its own."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    before, _ = registry.get_active_backend()
    try:
        yield
    finally:
        registry.set_active_backend(before)
