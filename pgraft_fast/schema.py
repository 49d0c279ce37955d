"""What all settings have in common: closed tables, and the kinds of numbers and names in them, each with its bounds.

A number has an upper bound where a larger one would only end in an overflow or in memory that no machine has.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WrapValidator


class Settings(BaseModel):
    """Base: unknown keys are errors, values are not converted in silence, nothing changes later, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# Samples, prompts and rows; a round's and an evaluation's are held in memory.
Count = Annotated[int, Field(ge=1, le=2**24)]
# Rows that go through a model at once.
Batch = Annotated[int, Field(ge=1, le=2**20)]
# Times that something is done, one after the other.
Times = Annotated[int, Field(ge=1, le=10**9)]
# Steps of a trajectory: a table has a row for each.
Steps = Annotated[int, Field(ge=1, le=100_000)]
# Side of a picture in pixels, width of a layer.
Size = Annotated[int, Field(ge=1, le=2**14)]
Layers = Annotated[int, Field(ge=1, le=1000)]
Repetitions = Annotated[int, Field(ge=1, le=1000)]
Threads = Annotated[int, Field(ge=1, le=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

# Any number that float32 holds with room to spare, and those above 0.
Real = Annotated[float, Field(ge=-1e30, le=1e30)]
Positive = Annotated[float, Field(gt=0, le=1e30)]
Power = Annotated[float, Field(ge=0.01, le=100)]
Rate = Annotated[float, Field(gt=0, le=1e3)]
Decay = Annotated[float, Field(ge=0, le=1e3)]
# Scale of guidance.
Scale = Annotated[float, Field(ge=0, le=1e4)]
# Of a cut, an average, rows that are held out.
Part = Annotated[float, Field(ge=0, lt=1)]


def _share_or_auto(value: Any, check: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, str):
        raise ValueError('input should be a share of the steps in [0, 1), or "auto"')
    return check(value)


# A union would tell of a wrong value once for each of its sides.
if TYPE_CHECKING:
    Cut = float | Literal["auto"]
else:
    Cut = Annotated[Part, WrapValidator(_share_or_auto), PlainSerializer(lambda value: value, return_type=Any)]
# Of a wait: what a system's clocks take is 24 days.
Seconds = Annotated[float, Field(gt=0, le=1e6)]

# Of a file or folder, or of what is found under a name.
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
