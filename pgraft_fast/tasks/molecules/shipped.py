"""The shipped model: its noise law, what it predicts, where its weights lie."""

from pathlib import Path

from torch import Tensor, nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.tasks.molecules.denoiser import MoleculeDenoiser
from pgraft_fast.tasks.molecules.egnn import EGNN
from pgraft_fast.tasks.molecules.elements import NO_ATOM, Molecules
from pgraft_fast.tasks.molecules.transformer import DistanceTransformer
from pgraft_fast.tasks.weights import Variant

WEIGHTS = Path(__file__).parent / "weights"
FILE = "vp.safetensors"
# Slots of the shipped molecules, whose largest have 23 atoms.
N_MAX = 23
# EDM's own law, alpha = 1 - t^2, differs from it by less than 0.07 in alpha.
VARIANTS = {"vp": Variant(Schedule.cosine(), "v")}


def make_denoiser(variant: str = "vp", network: str = "transformer", **architecture: int) -> MoleculeDenoiser:
    """The network of the shipped weights, or "egnn", with random ones."""
    chosen = VARIANTS[variant]
    layers = DistanceTransformer(**architecture) if network == "transformer" else EGNN(**architecture)
    return MoleculeDenoiser(layers, chosen.schedule, chosen.parameterization)


def padded_elements(molecules: Molecules, n_max: int = N_MAX) -> Tensor:
    """Of n molecules, (n, n_max) int64: the conditions that name each atom's element."""
    elements = molecules.elements[:, :n_max]
    return nn.functional.pad(elements, (0, n_max - elements.shape[1]), value=NO_ATOM)
