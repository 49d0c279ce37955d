"""What is switched on in a module without a change of its weights."""

from typing import Any


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
