"""What all settings have in common."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base: unknown keys are errors, values are not converted in silence, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
