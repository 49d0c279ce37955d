"""The recipe of the shipped weights, in small."""

import math

import pytest
import torch
from graph_caches import OtherCache, taped
from torch.utils._python_dispatch import TorchDispatchMode

from pgraft_fast.errors import InputError
from pgraft_fast.sampling import GraphCache
from pgraft_fast.tasks.molecules import denoiser, recipe
from pgraft_fast.tasks.molecules.conditions import condition_of
from pgraft_fast.tasks.molecules.data import shipped
from pgraft_fast.tasks.molecules.denoiser import MoleculeDenoiser
from pgraft_fast.tasks.molecules.egnn import EGNN
from pgraft_fast.tasks.molecules.elements import Molecules, pack
from pgraft_fast.tasks.molecules.recipe import Sizes, denoising_loss, drawn, figures, train_molecules
from pgraft_fast.tasks.molecules.shipped import FILE, N_MAX, VARIANTS, make_denoiser
from pgraft_fast.tasks.weights import load_weights

TINY = {"width": 16, "depth": 1, "heads": 2, "radial": 8, "mixed": 4}
LAW = (VARIANTS["vp"].schedule, VARIANTS["vp"].parameterization)


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


def test_captured_gradients_are_those_of_plain_steps(tmp_path, monkeypatch):
    """The same weights, with everything that a replay does not do left out of it."""
    # On a device the number of slots in use is not looked at.
    monkeypatch.setattr(denoiser, "_slots_used", lambda condition: condition.shape[1])
    graphs, models = OtherCache(taped), []
    for cache in (graphs, GraphCache()):
        sizes = Sizes(steps=4, batch=8)
        models.append(train_molecules(tmp_path, sizes=sizes, graphs=cache, log=lambda text: None, **TINY))
    assert len(graphs) == 1
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


class NothingOfTheHost(TorchDispatchMode):
    """Raises where a value is read, a size depends on values, or a tensor is made of numbers of the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["transformer", "egnn"])
def test_no_step_needs_the_host(name, monkeypatch):
    model = make_denoiser(**TINY) if name == "transformer" else MoleculeDenoiser(EGNN(8, 1), *LAW)
    x_0, elements = pack(shipped().elements[:8], shipped().positions[:8], N_MAX), shipped().elements[:8]
    with pytest.raises(AssertionError), NothingOfTheHost():
        denoising_loss(model, x_0, elements)
    # On a device the number of slots in use is not looked at.
    monkeypatch.setattr(denoiser, "_slots_used", lambda condition: condition.shape[1])
    with NothingOfTheHost():
        denoising_loss(model, x_0, elements).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_rate_ends_with_the_time(tmp_path, monkeypatch):
    """Each look at the clock is a tenth of the time later."""
    now = iter(range(1000))
    monkeypatch.setattr(recipe.time, "perf_counter", lambda: float(next(now)))
    monkeypatch.setattr(recipe, "_LOOK", 1)
    lines = []
    train_molecules(tmp_path, sizes=Sizes(steps=1000, batch=4, seconds=10.0), log=lines.append, **TINY)
    assert len(lines) == 1 and lines[0].startswith("step 10 of 1000, loss ")
    rates = [recipe._rate(progress / 1000) for progress in range(1001)]
    assert max(rates) == 1.0 == recipe._rate(recipe._RISE) and rates[-1] < 1e-9 and min(rates[:-1]) > 0.0
    assert Sizes().seconds == math.inf


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


def test_other_data_and_another_network(tmp_path, monkeypatch):
    """The egnn on molecules of more atoms than the shipped ones have; a name that is no data."""
    count = torch.tensor([27, 5])
    elements = torch.zeros(2, 27, dtype=torch.int64).where(torch.arange(27) < count[:, None], -1)
    points = torch.randn(2, 27, 3, generator=torch.Generator().manual_seed(0)).where(elements[:, :, None] >= 0, 0.0)
    monkeypatch.setattr(recipe, "qm9", lambda split: Molecules(elements, points))
    monkeypatch.setattr(recipe, "figures", lambda model, molecules: measured_of(model, molecules, n=4, steps=2))
    monkeypatch.setattr(recipe, "make_denoiser", lambda network: make_denoiser(network=network, width=8, depth=1))
    pytest.importorskip("rdkit")
    found = recipe.train_all(tmp_path, log=lambda line: None, sizes=Sizes(steps=2, batch=2), data="qm9")
    assert found["vp"]["sampling_steps"] == 2
    loaded, _ = load_weights(make_denoiser(network="egnn", width=8, depth=1), tmp_path / FILE)
    assert isinstance(loaded.network, EGNN)
    with pytest.raises(InputError, match="--data zinc: molecules are the shipped ones, or those of 'qm9'"):
        recipe.train_all(tmp_path, data="zinc")


def measured_of(model, molecules, n, steps):
    return figures(model, n, steps, molecules=molecules)
