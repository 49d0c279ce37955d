"""The molecules task: model, prompts, rewards, figures; samples that do not depend on what is beside them."""

import importlib.util
import json
import math
import shutil

import pytest
import torch
from safetensors import safe_open

from pgraft_fast.diffusion import normal
from pgraft_fast.errors import CheckpointError, InputError
from pgraft_fast.finetune import FinetuneSettings, Ledger, SampleSettings, SelectSettings, Trainer, TrainSettings
from pgraft_fast.sampling import rollout
from pgraft_fast.tasks.evaluation import evaluate, features_of, pictures_of
from pgraft_fast.tasks.evaluation import quality_of as quality_of_evaluation
from pgraft_fast.tasks.known import task_of
from pgraft_fast.tasks.molecules import rewards
from pgraft_fast.tasks.molecules.conditions import condition_of, counts
from pgraft_fast.tasks.molecules.data import shipped
from pgraft_fast.tasks.molecules.elements import pack, unpack
from pgraft_fast.tasks.molecules.shipped import FILE, WEIGHTS, make_denoiser, padded_elements
from pgraft_fast.tasks.molecules.stability import stability
from pgraft_fast.tasks.molecules.task import REWARDS, MoleculesSettings, molecules_task

MEASURES = ["stable %", "whole %", "valid %", "distinct stable / 1,000", "atoms stable %"]


@pytest.fixture(scope="module")
def task():
    return molecules_task(MoleculesSettings())


@pytest.fixture(scope="module")
def real():
    """Samples that are molecules of the data, their conditions, and prompts of their sizes."""
    molecules = shipped().rows(torch.arange(100, 200))
    samples = pack(molecules.elements, molecules.positions, 23)
    return samples, padded_elements(molecules), [f"{count} atoms" for count in molecules.count.tolist()]


def drawn(task, condition, ids=None, steps=6):
    ids = torch.arange(len(condition)) if ids is None else ids
    return rollout(
        task.model, task.schedule, shape=(condition.shape[1], 9), sample_ids=ids, steps=steps, solver="ddpm",
        parameterization=task.parameterization, condition=condition,
    ).x_0  # fmt: skip


def test_the_shipped_model_draws_molecules(task):
    condition = task.prompts.condition[:48]
    judged = stability(*unpack(drawn(task, condition, steps=25), counts(condition)))
    assert float(judged.stable_atoms.sum()) > 0.7 * float(counts(condition).sum())
    with safe_open(WEIGHTS / FILE, "pt") as file:
        told = json.loads(file.metadata()["pgraft_fast"])
    assert told["molecule_stability"] > 25 and told["molecule_stability_by_formula"] > 35
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 4_000_000


def test_prompts_follow_the_data_from_the_first_on(task):
    of_data = shipped().count.double()
    assert float(counts(task.prompts.condition).double().mean()) == pytest.approx(float(of_data.mean()), abs=0.15)
    for some in (12, 32, 64):
        sizes = counts(task.prompts.condition[:some]).double()
        assert float(sizes.mean()) == pytest.approx(float(of_data.mean()), abs=0.4)
    assert torch.equal(task.prompts.condition, condition_of(task.prompts.text, 23))
    by_formula = molecules_task(MoleculesSettings(prompts="formulas"))
    assert torch.equal(by_formula.prompts.condition, condition_of(by_formula.prompts.text, 23))
    assert len(set(by_formula.prompts.text)) > 30
    assert torch.equal(task.prompts.elements(task.prompts.condition), task.prompts.condition >= 0)
    assert torch.equal(task.condition_of(["C4H8O2"]), condition_of(["C4H8O2"], 23))
    with pytest.raises(InputError, match="'30 atoms' asks for more than 23 atoms"):
        task.condition_of(["30 atoms"])


@pytest.mark.parametrize("name", [name for name in REWARDS if name != "gfn2"])
def test_rewards_read_the_prompts(task, real, name):
    if name == "valid":
        pytest.importorskip("rdkit")
    samples, condition, prompts = real
    broken = samples.clone()
    broken[::2, 0, :3] += 9.0
    found = task.reward(name)(broken, prompts)
    assert torch.equal(found, REWARDS[name](broken, condition))
    assert 0 < float(found.mean()) < 1
    with pytest.raises(InputError, match="prompt 'a cat' is neither a number of atoms nor a formula"):
        task.reward(name)(samples[:1], ["a cat"])


def test_a_users_reward_gets_elements_and_positions(task, real, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def oxygens(elements, positions):\n    return (elements == 3).sum(1) + 0 * positions[:, 0, 0]\n")
    samples, condition, prompts = real
    found = task.reward(f"{file}:oxygens")(samples, prompts)
    assert found.tolist() == (condition == 3).sum(dim=1).tolist()
    with pytest.raises(InputError, match="reward 'beauty' is unknown; known: stable, "):
        task.reward("beauty")


def test_energy_needs_its_package(task, real):
    samples, _, prompts = real
    if importlib.util.find_spec("tblite"):
        pytest.skip("tblite is installed")
    with pytest.raises(InputError, match=r"needs tblite, not installed: pip install 'pgraft-fast\[xtb\]'"):
        task.reward("gfn2")(samples[:1], prompts[:1])


def test_energy_of_water():
    """GFN2-xTB's published energy of water near its minimum is -5.0705 hartree."""
    pytest.importorskip("tblite")
    points = torch.tensor([[[0.0, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]]] * 2)
    samples, condition = pack(torch.tensor([[3, 0, 0]] * 2), points), condition_of(["3 atoms"] * 2)
    samples[1, 0, 0] = torch.nan
    found = rewards.gfn2(samples, condition)
    assert 3.0 * float(found[0]) == pytest.approx(5.0705, abs=1e-3) and math.isnan(found[1])


def test_figures_of_the_data(task):
    pytest.importorskip("rdkit")
    figures = task.measures_of_data()
    assert list(figures) == MEASURES
    assert figures["stable %"] == pytest.approx(96, abs=2) and figures["atoms stable %"] > 99
    assert figures["stable %"] >= figures["whole %"] > 90 and figures["valid %"] > 95
    assert 950 < figures["distinct stable / 1,000"] < 980
    first, second = task.data[::2], task.data[1::2]
    near = task.quality_of(first, torch.zeros(len(first)), second)["fd_accepted"]
    assert near < 1.0 and task.data.std(dim=0).max() == pytest.approx(1.0, abs=0.01)


def test_figures_without_rdkit(task, real, monkeypatch):
    samples, condition, _ = real
    with_it = task.measures(samples, condition)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = task.measures(samples, condition)
    assert [name for name in MEASURES if math.isnan(found[name])] == ["valid %", "distinct stable / 1,000"]
    assert found["stable %"] == with_it["stable %"]
    with pytest.raises(InputError, match="molecules need their condition"):
        task.measures(samples, None)


def test_a_sample_does_not_change_with_its_neighbours(task):
    """To rounding: sums over other numbers of slots are ordered otherwise. The molecules are the same."""
    condition = condition_of(["9 atoms", "23 atoms", "C2H6O", "14 atoms"], 23)
    together = drawn(task, condition)
    for row in range(4):
        alone = drawn(task, condition[row : row + 1], torch.tensor([row]))
        torch.testing.assert_close(alone[0], together[row], atol=2e-4, rtol=1e-4)


def test_a_wider_sample_has_the_same_rows(task):
    """Bit for bit the noise, which goes by place; the molecules to rounding."""
    ids = torch.arange(3)
    narrow, wide = (normal(0, ids, 4, (n, 9)) for n in (23, 29))
    assert torch.equal(wide[:, :23], narrow)
    texts = ["12 atoms", "C4H8O2", "20 atoms"]
    narrow, wide = (drawn(task, condition_of(texts, n)) for n in (23, 29))
    torch.testing.assert_close(wide[:, :23], narrow, atol=2e-4, rtol=1e-4)
    kinds, wider_kinds = (unpack(rows, counts(condition_of(texts)))[0] for rows in (narrow, wide))
    assert torch.equal(kinds, wider_kinds[:, :23])


def test_training_and_evaluation(task, tmp_path):
    pytest.importorskip("rdkit")
    settings = FinetuneSettings(
        sample=SampleSettings(prompts=6, candidates=4, steps=4, solver="ddpm"),
        select=SelectSettings(rule="binary", threshold=0.3),
        train=TrainSettings(steps=2, batch_size=8, learning_rate=1e-4, cut=0.25),
    )
    reward = task.reward("share_of_stable_atoms")
    trainer = Trainer(
        task.model, task.schedule, reward, settings, shape=task.shape, prompts=task.prompts,
        parameterization=task.parameterization, run=tmp_path, log=lambda text: None,
    )  # fmt: skip
    trainer.run_rounds()
    found = evaluate(task, reward, settings, 8, tuned=trainer.tuned.eval(), cut=0.25, ledger=Ledger())
    assert features_of(task, found).shape == (8, 60) and pictures_of(task, found).shape == (8, 120, 120, 3)
    quality = quality_of_evaluation(task, found, None, 4)
    assert list(quality["measures"]) == MEASURES and quality["fd_data"] > 0


def test_settings(tmp_path):
    with pytest.raises(ValueError, match="name a folder in weights"):
        MoleculesSettings(data="qm9")
    with pytest.raises(ValueError, match="name a folder in weights"):
        MoleculesSettings(network="egnn")
    shutil.copy(WEIGHTS / FILE, tmp_path)
    assert task_of({"name": "molecules", "weights": str(tmp_path)}).name == "molecules"
    with pytest.raises(CheckpointError, match="these weights are not of a MoleculeDenoiser"):
        molecules_task(MoleculesSettings(network="egnn", weights=str(tmp_path)))
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        molecules_task(MoleculesSettings(weights=str(tmp_path / "nowhere")))
    assert sum(p.numel() for p in make_denoiser(network="egnn", width=8, depth=1).parameters()) < 1000
