"""Which of a pipeline's networks is its denoiser."""

from typing import Any

# Names of the network that is trained.
DENOISERS = ("transformer", "unet")


def denoiser_of(pipe: Any) -> Any:
    """The transformer or UNet of a pipeline, whatever its class; None where it has neither."""
    parts = (getattr(pipe, name, None) for name in DENOISERS)
    return next((part for part in parts if part is not None), None)
