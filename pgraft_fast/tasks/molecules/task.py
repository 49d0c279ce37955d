"""The molecules task: the shipped model of small molecules, or a user's own of QM9."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Prompts
from pgraft_fast.schema import Name, Settings
from pgraft_fast.tasks.base import Task
from pgraft_fast.tasks.molecules.conditions import atoms, condition_of, counts
from pgraft_fast.tasks.molecules.data import formula_prompts, qm9, shipped, size_prompts
from pgraft_fast.tasks.molecules.elements import MAX_ATOMS, WIDTH, Molecules, pack, unpack
from pgraft_fast.tasks.molecules.features import counted, deviations
from pgraft_fast.tasks.molecules.graphs import distinct_per_1000, graphs, same
from pgraft_fast.tasks.molecules.pictures import molecule_pictures
from pgraft_fast.tasks.molecules.rewards import gfn2, share_of_stable_atoms, stable, stable_connected, valid
from pgraft_fast.tasks.molecules.shipped import FILE, N_MAX, WEIGHTS, make_denoiser, padded_elements
from pgraft_fast.tasks.molecules.stability import stability
from pgraft_fast.tasks.sets import device_of, spread
from pgraft_fast.tasks.weights import load_weights

REWARDS = {
    "stable": stable,
    "stable_connected": stable_connected,
    "share_of_stable_atoms": share_of_stable_atoms,
    "valid": valid,
    "gfn2": gfn2,
}
_PROMPTS = 100
# Molecules of QM9 that the distance to the data is measured to.
_COMPARED = 10_000


class MoleculesSettings(Settings):
    """[task] of a run of molecules.

    prompts: 100 numbers of atoms, or 100 formulas, as frequent as in the data. reward: stable, stable_connected,
    share_of_stable_atoms, valid, gfn2 (minus the energy an atom), or file.py:function of (elements (B, N) int64 in the
    order H C N O F with -1 for no atom, positions (B, N, 3) in angstrom). data: the shipped molecules of at most 7
    heavy atoms, or QM9 with up to 29 atoms. network: of the weights. variant: of the noise law, there is one. weights:
    a folder made by `train-base`, in place of the shipped one, a transformer of the shipped data. device: of
    the model; "auto" is CUDA where there is some.
    """

    name: Literal["molecules"] = "molecules"
    prompts: Literal["sizes", "formulas"] = "sizes"
    reward: Name = "stable"
    data: Literal["shipped", "qm9"] = "shipped"
    network: Literal["transformer", "egnn"] = "transformer"
    variant: Literal["vp"] = "vp"
    weights: Name | None = None
    device: Literal["cpu", "cuda", "auto"] = "cpu"

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.weights is None and (self.data, self.network) != ("shipped", "transformer"):
            raise ValueError(
                'weights are shipped for data "shipped" and network "transformer" alone; name a folder in weights'
            )
        return self


def molecules_task(settings: MoleculesSettings) -> Task:
    """Load the model. Raises CheckpointError for missing or damaged weights, InputError for QM9 without qm9pack."""
    folder = WEIGHTS if settings.weights is None else Path(settings.weights)
    n_max = N_MAX if settings.data == "shipped" else MAX_ATOMS
    model, model_hash = load_weights(make_denoiser(network=settings.network), folder / FILE)
    molecules = shipped() if settings.data == "shipped" else qm9("train")
    compared = molecules.rows(torch.arange(min(len(molecules), _COMPARED)))
    data = counted(*_rows_of(compared, n_max))
    scale = deviations(data)

    def features(samples: Tensor, condition: Tensor | None) -> Tensor:
        return (counted(samples, known(condition)) / scale.to(samples.device)).cpu()

    def wired(function: Callable[[Tensor, Tensor], object]) -> Callable[[Tensor, Sequence[str]], object]:
        return lambda samples, prompts: function(samples, condition_of(prompts, n_max).to(samples.device))

    def own_reward(function: Callable[..., object]) -> Callable[..., object]:
        return wired(lambda samples, condition: function(*unpack(samples, counts(condition))))

    return Task(
        name="molecules",
        model=model.to(device_of(settings.device)),
        schedule=model.schedule,
        parameterization=model.parameterization,
        shape=(n_max, WIDTH),
        prompts=_prompts(settings, molecules, n_max),
        rewards={name: wired(function) for name, function in REWARDS.items()},
        features=features,
        data=data / scale,
        pictures=lambda samples, condition: molecule_pictures(samples, known(condition)),
        identity={"model_sha256": model_hash, "network": settings.network, "data": settings.data},
        measures=lambda samples, condition: measures(samples, known(condition)),
        measures_of_data=lambda: measures(*_rows_of(compared, n_max)),
        condition_of=lambda texts: condition_of(texts, n_max),
        own_reward=own_reward,
    )


def measures(samples: Tensor, condition: Tensor) -> dict[str, float]:
    """Percentages, and distinct stable molecules in 1,000 draws; nan where that takes rdkit and it is not installed.

    samples: (n, N, 9). condition: (n, N) int64. whole: stable and in one piece. Of fewer than 1,000 samples the
    distinct ones are scaled up, so compare equal numbers of samples alone.
    """
    elements, positions = unpack(samples, counts(condition))
    judged = stability(elements, positions)
    chemistry = graphs(elements, positions, judged) if importlib.util.find_spec("rdkit") else None
    distinct = math.nan if chemistry is None else distinct_per_1000(chemistry.smiles, judged.stable)
    return {
        "stable %": _percent(judged.stable),
        "whole %": _percent(judged.stable & judged.connected),
        "valid %": math.nan if chemistry is None else _percent(chemistry.valid),
        "distinct stable / 1,000": distinct,
        "atoms stable %": _percent(judged.stable_atoms[elements >= 0]),
    }


def known(condition: Tensor | None) -> Tensor:
    """Raises InputError where there is none: it says which rows are atoms."""
    if condition is None:
        raise InputError("molecules need their condition, which says how many atoms each has")
    return condition


def _prompts(settings: MoleculesSettings, molecules: Molecules, n_max: int) -> Prompts:
    """As frequent as in the data; the first of them, however many, are spread over all sizes or formulas."""
    prompts = (size_prompts if settings.prompts == "sizes" else formula_prompts)(molecules, _PROMPTS, n_max)
    order = spread(_PROMPTS)
    text, condition = [prompts.text[place] for place in order.tolist()], known(prompts.condition)[order]
    return Prompts(text, condition, elements=atoms, same=lambda samples, rows: same(samples, known(rows)))


def _rows_of(molecules: Molecules, n_max: int) -> tuple[Tensor, Tensor]:
    """As samples (n, n_max, 9), with the conditions that name their elements."""
    return pack(molecules.elements, molecules.positions, n_max), padded_elements(molecules, n_max)


def _percent(values: Tensor) -> float:
    return 100.0 * float(values.to(torch.float64).mean()) if values.numel() else math.nan
