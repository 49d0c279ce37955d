"""The shipped models: what each is, where its weights lie."""

from pathlib import Path

from pgraft_fast.diffusion import Schedule
from pgraft_fast.tasks.weights import Variant

WEIGHTS = Path(__file__).parent / "weights"

VARIANTS = {
    "vp": Variant(Schedule.cosine(), "v"),
    "flow": Variant(Schedule.linear_flow(), "velocity"),
}
