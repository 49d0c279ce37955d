"""The shipped models of layouts: what each is, and where its weights lie."""

from dataclasses import dataclass
from pathlib import Path

from pgraft_fast.diffusion import Schedule

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Variant:
    """A noise law and what is predicted."""

    schedule: Schedule
    parameterization: str


VARIANTS = {
    "vp": Variant(Schedule.cosine(), "v"),
    "flow": Variant(Schedule.linear_flow(), "velocity"),
}
