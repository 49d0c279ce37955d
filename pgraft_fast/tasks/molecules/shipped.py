"""The shipped model: its noise law, what it predicts, where its weights lie."""

from pathlib import Path

from pgraft_fast.diffusion import Schedule
from pgraft_fast.tasks.molecules.denoiser import MoleculeDenoiser
from pgraft_fast.tasks.molecules.transformer import DistanceTransformer
from pgraft_fast.tasks.weights import Variant

WEIGHTS = Path(__file__).parent / "weights"
FILE = "vp.safetensors"
# Slots of the shipped molecules, whose largest have 23 atoms.
N_MAX = 23
# EDM's own law, alpha = 1 - t^2, differs from it by less than 0.07 in alpha.
VARIANTS = {"vp": Variant(Schedule.cosine(), "v")}


def make_denoiser(variant: str = "vp", **architecture: int) -> MoleculeDenoiser:
    """The network of the shipped weights, with random ones."""
    chosen = VARIANTS[variant]
    return MoleculeDenoiser(DistanceTransformer(**architecture), chosen.schedule, chosen.parameterization)
