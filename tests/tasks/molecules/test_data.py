"""QM9: the shipped molecules, and all where qm9pack is installed."""

import hashlib
import importlib.util

import pytest
import torch

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.molecules import data
from pgraft_fast.tasks.molecules.conditions import condition_of, counts
from pgraft_fast.tasks.molecules.data import (
    PARTS,
    SHIPPED,
    SIZE,
    formula_prompts,
    qm9,
    shipped,
    size_prompts,
    split_rows,
)
from pgraft_fast.tasks.molecules.elements import NO_ATOM, Molecules, pack
from pgraft_fast.tasks.molecules.readers import npz_bytes
from pgraft_fast.tasks.molecules.stability import stability

SHA256 = "551532a89a3bb914e4b9d492a65b1170b5add3c86151a80fe16501505a62f5a1"

HEADER = "SMILES,N_atoms,Elements,XYZ_Ang\n"
ROW = """"[H][H]",2,"['H','H']","[[0.,0.,0.],[0.74,0.,0.]]"\n"""


def test_the_shipped_file():
    content = SHIPPED.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256 and len(content) <= 350_000
    assert [path.name for path in SHIPPED.parent.iterdir()] == [SHIPPED.name]


def test_the_shipped_molecules():
    molecules = shipped()
    atom = molecules.elements != NO_ATOM
    assert len(molecules) == 3921 and int(molecules.count.sum()) == 55498 and int(molecules.count.max()) == 23
    assert int((molecules.elements > 0).sum(dim=1).max()) == 7
    assert molecules.positions.dtype == torch.float32 and not molecules.positions[~atom].any()
    centre = molecules.positions.sum(dim=1) / molecules.count[:, None]
    assert centre.abs().max() < 5e-4
    # Methane, ammonia and water come first.
    assert molecules.elements[:3, :5].tolist() == [[1, 0, 0, 0, 0], [2, 0, 0, 0, -1], [3, 0, 0, -1, -1]]
    assert pack(molecules.elements, molecules.positions).shape == (3921, 29, 9)


def test_split_of_edm():
    """The first and last numbers of numpy's permutation with seed 0."""
    rows = split_rows()
    assert {name: len(part) for name, part in rows.items()} == PARTS
    assert torch.equal(torch.cat(list(rows.values())).sort().values, torch.arange(SIZE))
    assert rows["train"][:3].tolist() == [130195, 68784, 7957] and rows["test"][-3:].tolist() == [42613, 43567, 68268]


def test_small_molecules_are_chosen_by_heavy_atoms():
    molecules = data.small_molecules(shipped(), 2)
    assert len(molecules) == 8 and int((molecules.elements > 0).sum(dim=1).max()) == 2
    assert molecules.elements.shape[1] == int(molecules.count.max()) == 8


def test_prompts_follow_the_sizes():
    elements = torch.zeros(10, 5, dtype=torch.int64)
    elements[:6, 3:], elements[6:9, 4:] = NO_ATOM, NO_ATOM
    molecules = Molecules(elements, torch.zeros(10, 5, 3))
    prompts = size_prompts(molecules, 10)
    assert prompts.text == ["3 atoms"] * 6 + ["4 atoms"] * 3 + ["5 atoms"]
    assert torch.equal(prompts.condition, condition_of(prompts.text, 5))
    for n in (1, 7, 100):
        prompts = size_prompts(shipped(), n)
        assert len(prompts.text) == n and prompts.condition.shape == (n, 23)
    share = torch.bincount(counts(prompts.condition), minlength=24) / 100 - torch.bincount(shipped().count) / 3921
    assert share.abs().max() < 0.01


def test_prompts_follow_the_formulas():
    """CH4 is there three times, H2O twice, HF once."""
    rows = [[0, 0, 1, 0, 0]] * 2 + [[1, 0, 0, 0, 0], [3, 0, 0, -1, -1], [0, 0, 3, -1, -1], [4, 0, -1, -1, -1]]
    molecules = Molecules(torch.tensor(rows), torch.zeros(6, 5, 3))
    prompts = formula_prompts(molecules, 6, 7)
    assert prompts.text == ["CH4"] * 3 + ["H2O"] * 2 + ["FH"]
    assert prompts.condition[3].tolist() == [0, 0, 3, -1, -1, -1, -1]
    assert formula_prompts(molecules, 3).text == ["CH4", "CH4", "H2O"]
    prompts = formula_prompts(shipped(), 500)
    assert len(prompts.text) == 500 and prompts.condition.shape == (500, 23) and not (prompts.condition == 5).any()


def test_without_qm9pack(monkeypatch):
    data._qm9.cache_clear()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "qm9pack" else find_spec(name))
    with pytest.raises(InputError, match=r"^QM9 needs qm9pack, not installed: pip install 'pgraft-fast\[molecules\]'$"):
        qm9("train")
    with pytest.raises(InputError, match=r"^split 'valid' is unknown; known: all, train, validation, test$"):
        qm9("valid")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"qm9_part1\.csv: QM9 cannot be read \(No such file or directory\); install qm9pack again$"),
        (HEADER + ROW.replace("2", "3", 1), r"qm9_part1\.csv, molecule 1: not as qm9pack .* \(N_atoms is 3\)$"),
        (HEADER + ROW + ROW.replace("0.74", "x"), r"qm9_part1\.csv, molecule 2: not as qm9pack"),
        ("A,B\n1,2\n", r"qm9_part1\.csv, molecule 1: not as qm9pack 1\.0\.3 has it \('N_atoms'\)$"),
        (HEADER + ROW.replace("'H']", "'X']"), r"^qm9pack: element 'X' is unknown; known: H, C, N, O, F$"),
        (HEADER + ROW, r"data: 3 molecules; QM9 has 130831; install qm9pack again$"),
    ],
)
def test_a_damaged_qm9pack(tmp_path, monkeypatch, text, message):
    """Its three files are the same here."""
    folder = tmp_path / "qm9pack"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").touch()
    for part in (1, 2, 3) if text is not None else ():
        (folder / "data" / f"qm9_part{part}.csv").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message):
        data._qm9.__wrapped__()


@pytest.mark.skipif(importlib.util.find_spec("qm9pack") is None, reason="qm9pack is not installed")
@pytest.mark.slow
def test_all_of_qm9():
    """95.28 % of molecules and 99.36 % of atoms are stable; the recipe makes the shipped file."""
    molecules = qm9()
    assert len(molecules) == SIZE and molecules.elements.shape == (SIZE, 29)
    result = stability(molecules.elements, molecules.positions)
    assert int(result.stable.sum()) == 124650 and round(100 * 124650 / SIZE, 2) == 95.28
    atoms = int(molecules.count.sum())
    assert int(result.stable_atoms.sum()) == 2344065 and round(100 * 2344065 / atoms, 2) == 99.36
    test = qm9("test")
    assert len(test) == PARTS["test"] and test.smiles[0] == molecules.smiles[int(split_rows()["test"][0])]
    assert npz_bytes(data.small_molecules(molecules)) == npz_bytes(shipped())
