"""Which of a pipeline's networks is its denoiser."""

from typing import Any

from torch import nn

# Names of the network that is trained.
DENOISERS = ("transformer", "unet")


def denoiser_of(pipe: Any) -> Any:
    """The transformer or UNet of a pipeline, whatever its class; else the largest of diffusers' models that decodes
    nothing; None where there is none.
    """
    own = getattr(pipe, "__dict__", {})
    for name in DENOISERS:
        # A pipeline looks long for what it does not have.
        part = getattr(pipe, name, None) if name in own or hasattr(type(pipe), name) else None
        if part is not None:
            return part
    parts = [part for part in own.values() if isinstance(part, nn.Module)]
    others = [part for part in parts if hasattr(part, "register_to_config") and not hasattr(part, "decode")]
    return max(others, key=lambda part: sum(weight.numel() for weight in part.parameters()), default=None)
