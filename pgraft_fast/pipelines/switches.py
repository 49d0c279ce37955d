"""What is switched on in a module without a change of its weights."""

from typing import Any

from torch import nn


def runs_hooks(module: nn.Module) -> bool:
    """Whether hooks of accelerate, of diffusers or of torch run in it or within: they bring weights in and take them
    out, cast them, or see what goes through.

    An empty registry of diffusers is none: its `cache_context` makes one in every call.
    """
    for part in module.modules():
        registry = vars(part).get("_diffusers_hook")
        if "_hf_hook" in vars(part) or (registry is not None and len(registry.hooks)):
            return True
        if part._forward_hooks or part._forward_pre_hooks:
            return True
    return False


def switches_of(module: Any) -> tuple[Any, ...]:
    """Adapters of peft with their weights in the sum, attention processors of diffusers with their scale, FreeU.

    Of this module alone, not of those within it.
    """
    own = vars(module)
    switches: list[Any] = []
    # diffusers' models have a method of this name.
    if isinstance(getattr(type(module), "disable_adapters", None), property):
        merged, scaling = own.get("merged_adapters"), own.get("scaling")
        switches.append((module.disable_adapters, str(module.active_adapters), str(merged), str(scaling)))
    processor = own.get("processor") or own["_modules"].get("processor")
    if processor is not None:
        switches.append((id(processor), str(getattr(processor, "scale", None))))
    if "s1" in own:
        switches.append(tuple(own.get(name) for name in ("s1", "s2", "b1", "b2")))
    return tuple(switches)
