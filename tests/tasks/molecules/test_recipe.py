"""The recipe of the shipped weights, in small."""

import pytest
import torch

from pgraft_fast.tasks.digits.shipped import load_weights
from pgraft_fast.tasks.molecules.conditions import condition_of
from pgraft_fast.tasks.molecules.data import shipped
from pgraft_fast.tasks.molecules.elements import Molecules, pack
from pgraft_fast.tasks.molecules.recipe import Sizes, denoising_loss, drawn, figures, train_molecules
from pgraft_fast.tasks.molecules.shipped import FILE, N_MAX, make_denoiser

TINY = {"width": 16, "depth": 1, "heads": 2, "radial": 8, "mixed": 4}


def test_training_learns_and_repeats(tmp_path):
    lines = []
    models = [
        train_molecules(tmp_path / name, sizes=Sizes(steps=30, batch=16, every=15), log=lines.append, **TINY)
        for name in "ab"
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))
    assert lines[0].startswith("step 15 of 30, loss 0.") and len(lines) == 4
    loaded, _ = load_weights(make_denoiser(**TINY), tmp_path / "a" / FILE)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), models[0].parameters(), strict=True))
    x_0, elements = pack(shipped().elements[:256], shipped().positions[:256], N_MAX), shipped().elements[:256]
    losses = []
    for model in (make_denoiser(**TINY), models[0]):
        torch.manual_seed(1)
        losses.append(float(denoising_loss(model, x_0, elements).detach()))
    assert losses[1] < 0.95 * losses[0]


def test_loss_by_hand():
    """Of a model that answers 0: the mean square of v over the atoms' nine columns, whatever padding would add."""
    elements = torch.tensor([[1, 0, 0, 0, 0, -1, -1]] * 4000)
    x_0 = torch.zeros(4000, 7, 9)
    x_0[:, 5:] = 100.0

    def model(x, t, condition):
        assert sorted(condition.flatten().unique().tolist()) == [-1, 0, 1, 5]
        told = (condition[:, 0] == 1).float().mean()
        assert told == pytest.approx(0.5, abs=0.04)
        return torch.zeros_like(x)

    # E |alpha eps|^2 over t, where alpha^2 = cos^2 has the mean 1/2.
    assert float(denoising_loss(model, x_0, elements)) == pytest.approx(0.5, abs=0.01)


def test_a_check_ends_the_training(tmp_path):
    def check():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_molecules(tmp_path, sizes=Sizes(steps=3, batch=4), check=check, log=print, **TINY)


def test_figures_of_random_weights():
    pytest.importorskip("rdkit")
    torch.manual_seed(0)
    model = make_denoiser(**TINY).requires_grad_(False).eval()
    found = figures(model, n=12, steps=3)
    assert 0.0 <= found["atom_stability"] <= 100.0 and found["molecule_stability"] == 0.0
    assert {"valid", "connected", "distinct_stable_per_1000", "molecule_stability_by_formula"} <= set(found)
    condition = condition_of(["5 atoms", "CH4"], N_MAX)
    assert torch.equal(drawn(model, condition, steps=3, seed=1), drawn(model, condition, steps=3, seed=1))


def test_other_molecules(tmp_path):
    molecules = Molecules(shipped().elements[:, :9], shipped().positions[:, :9]).rows(torch.arange(6))
    train_molecules(tmp_path, sizes=Sizes(steps=1, batch=4), molecules=molecules, log=lambda text: None, **TINY)
